//! The API socket: port forwards for those who ask from outside, in slirp4netns's words ([`protocol`]).
//!
//! A connection is one request and one answer. Each client is a task of its own that reads until there is a whole
//! request, asks the loop in [`Api::serve`], which alone has the registry, and writes the answer. All of it is bounded: how many clients, how
//! long they may take, how long a request is. None of it is in the way of a packet.

pub mod client;
pub mod place;
pub mod protocol;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::forwards::{Carriers, Forwards, Leaving};
use crate::boot::keeper::Kept;
use crate::config::PortRequest;
use crate::limits::{API_CLIENTS_MAX, API_PATIENCE, API_REQUEST_MAX};
use protocol::Problem;

/// See [`API_PATIENCE`].
const PATIENCE: Duration = Duration::from_millis(API_PATIENCE.0);

/// A listening API socket.
#[derive(Debug)]
pub struct Api {
    listener: UnixListener,
}

/// A request, and where its answer goes.
struct Job {
    request: PortRequest,
    answer: oneshot::Sender<Answer>,
}

enum Answer {
    Text(String),
    /// To be told when the ports are free.
    Leaving(Leaving),
}

impl Api {
    /// Makes the socket; see [`place::bind`].
    ///
    /// # Errors
    /// As there.
    pub fn bind(path: &Path, replace_live: bool) -> io::Result<(Self, Kept)> {
        let (listener, file) = place::bind(path, replace_live)?;
        listener.set_nonblocking(true)?;
        Ok((Self { listener: UnixListener::from_std(listener)? }, file))
    }

    /// Serves clients, for ever.
    pub async fn serve<C: Carriers + ?Sized>(&self, forwards: &mut Forwards<'_, C>) {
        let clients = Arc::new(Semaphore::new(API_CLIENTS_MAX));
        let (jobs, mut asked) = mpsc::channel(API_CLIENTS_MAX);
        loop {
            tokio::select! {
                Some(Job { request, answer }) = asked.recv() => {
                    // A client that has gone gets none; what it asked for is done.
                    let _ = answer.send(execute(forwards, request).await);
                }
                (stream, place) = self.next(&clients) => {
                    let jobs = jobs.clone();
                    tokio::task::spawn_local(async move {
                        if let Err(e) = serve_one(stream, jobs).await {
                            tracing::debug!("a client of the API socket: {e}");
                        }
                        drop(place);
                    });
                }
            }
        }
    }

    /// The next client, when there is room for one.
    async fn next(&self, clients: &Arc<Semaphore>) -> (UnixStream, OwnedSemaphorePermit) {
        loop {
            // Nobody closes the semaphore.
            if let Ok(place) = clients.clone().acquire_owned().await
                && let Ok((stream, _)) = self.listener.accept().await
            {
                return (stream, place);
            }
            // An error is one client's (it has gone) or a lack of descriptors: neither lasts.
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Does what is asked. One at a time: a port is added when the workers have it, which is within a turn of theirs.
async fn execute<C: Carriers + ?Sized>(
    forwards: &mut Forwards<'_, C>,
    request: PortRequest,
) -> Answer {
    tracing::debug!("API: {request:?}");
    Answer::Text(match request {
        PortRequest::Add(forward) => match forwards.add(forward).await {
            Ok(id) => protocol::added(id),
            Err(refused) => {
                tracing::warn!("add_hostfwd: {}", refused.line);
                protocol::refused(&refused.into())
            }
        },
        PortRequest::List => protocol::listed(forwards.list()),
        PortRequest::Remove(id) => match forwards.remove(id) {
            Some(leaving) => return Answer::Leaving(leaving),
            None => protocol::refused(&Problem::no_such_id()),
        },
    })
}

/// One request, one answer.
async fn serve_one(mut stream: UnixStream, jobs: mpsc::Sender<Job>) -> io::Result<()> {
    let answer = match read(&mut stream).await? {
        Ok(request) => match ask(request, jobs).await {
            Some(answer) => answer,
            // We are about to end.
            None => return Ok(()),
        },
        Err(problem) => protocol::refused(&problem),
    };
    let write = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    timeout(PATIENCE, write).await??;
    // Closed with something left to read, the client would find an error behind its answer.
    let mut rest = [0; API_REQUEST_MAX];
    while stream.try_read(&mut rest).is_ok_and(|n| n > 0) {}
    Ok(())
}

async fn ask(request: PortRequest, jobs: mpsc::Sender<Job>) -> Option<String> {
    let (answer, heard) = oneshot::channel();
    jobs.send(Job { request, answer }).await.ok()?;
    Some(match heard.await.ok()? {
        Answer::Text(text) => text,
        Answer::Leaving(leaving) => match leaving.done().await {
            true => protocol::removed(),
            false => protocol::refused(&Problem::not_removed()),
        },
    })
}

/// Reads until there is a whole request, however it is cut, or there is no more, or it takes too long.
async fn read(stream: &mut UnixStream) -> io::Result<Result<PortRequest, Problem>> {
    let mut bytes = Vec::with_capacity(API_REQUEST_MAX);
    let mut piece = [0; API_REQUEST_MAX];
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let ended = match tokio::time::timeout_at(end, stream.read(&mut piece)).await {
            Ok(read) => {
                let n = read?;
                bytes.extend_from_slice(&piece[..n]);
                n == 0
            }
            Err(_) => true,
        };
        if bytes.len() >= API_REQUEST_MAX {
            return Ok(Err(Problem::too_large()));
        }
        if let Some(value) = protocol::value(&bytes, ended) {
            return Ok(value.and_then(|value| protocol::parse(&value)));
        }
    }
}
