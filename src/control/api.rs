//! The API socket of the slirp4netns personality. Port forwards come later: until then every request is
//! answered with an error in the protocol's form, so that callers start and say what is missing.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Clients served at a time; more wait in the kernel's queue.
const CLIENTS_MAX: usize = 16;
/// A client that has sent or taken nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one request at most, as in slirp4netns.
const REQUEST_MAX: usize = 4095;
/// The one answer.
const ANSWER: &[u8] =
    br#"{"error":{"desc":"port forwards are not supported by this version of ringtap"}}"#;

/// A listening API socket, removed in the end.
#[derive(Debug)]
pub struct Api {
    listener: UnixListener,
    path: PathBuf,
    clients: Rc<()>,
}

impl Api {
    /// Makes the socket; one that is left over is replaced. Its mode comes from the umask.
    ///
    /// # Errors
    /// What stands at the path and is no socket, or what `bind(2)` says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                return Err(io::Error::other("there is a file of this name and it is no socket"));
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        Ok(Self { listener, path: path.to_owned(), clients: Rc::new(()) })
    }

    /// Serves clients, for ever.
    pub async fn serve(&self) {
        loop {
            if Rc::strong_count(&self.clients) > CLIENTS_MAX {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            // An error is one client's (it has gone) or a lack of descriptors: neither lasts.
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let client = self.clients.clone();
            tokio::task::spawn_local(async move {
                let _ = tokio::time::timeout(PATIENCE, answer(stream)).await;
                drop(client);
            });
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// One request, one answer, as slirp4netns: a single read.
async fn answer(mut stream: UnixStream) -> io::Result<()> {
    let mut request = [0; REQUEST_MAX];
    if stream.read(&mut request).await? > 0 {
        stream.write_all(ANSWER).await?;
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_json_with_an_error() {
        let answer: serde_json::Value = serde_json::from_slice(ANSWER).unwrap();
        assert!(
            answer["error"]["desc"].as_str().is_some_and(|desc| desc.contains("not supported"))
        );
    }
}
