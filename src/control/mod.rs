//! Everything beside the data path: lifetime, signals, resolvers, the API socket. Never on the packet path.
//!
//! # Theory of operation
//!
//! The main thread starts the workers, one for each queue of the TAP, says that the network is ready in the order that callers rely on (forwarded ports
//! and the API socket listen, then the ready byte, then the descriptor closes), and waits. The program ends by
//! the first of: a signal, the exit descriptor, the end of the guest (its process, its path, the command of `run`),
//! the end of a worker. It then stops the workers, leaves the TAP and the file system as they were, ends the
//! guest's processes where they are its own, and exits with the code that the personality gives.
//!
//! It runs on `tokio-uring`, and where io_uring is blocked for it on plain tokio: nothing here needs more. So it does when
//! the process is confined, since that ring could do what the filter forbids, and tokio-uring cannot restrict it.

pub mod api;
pub mod forwards;
pub mod resolv;
pub mod watch;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::MsgFlags;
use nix::unistd::{getpgrp, tcgetpgrp, tcsetpgrp};
use tokio::io::Interest;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::boot::create::Made;
use crate::boot::pass::FromChild;
use crate::boot::{Context, Failure, Guest, Inherited, Init, Life, create, seccomp, sys, tap};
use crate::config::{Config, Mode, Personality};
use crate::limits::DRAIN;
use crate::output::{say, say_error};
use crate::worker::team::Team;
use crate::worker::{self, Handle, Notice, Request};
use resolv::Resolvers;

/// How the program ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Code(u8),
    /// By this signal, as if it had not been caught.
    Signal(Signal),
    /// With this line and exit code 1.
    Failed(Failure),
}

/// Forwards until something ends it.
pub fn run(config: &Config, guest: Guest, inherited: Inherited) -> End {
    if !(config.sandbox || config.seccomp) {
        match tokio_uring::Runtime::new(tokio_uring::builder().entries(8)) {
            Ok(runtime) => return runtime.block_on(forward(config, guest, inherited)),
            Err(e) => tracing::debug!("control without io_uring: {e}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context(|| "start the control loop") {
        Ok(runtime) => {
            tokio::task::LocalSet::new().block_on(&runtime, forward(config, guest, inherited))
        }
        Err(failure) => End::Failed(failure),
    }
}

/// From a ready TAP to the end; whatever happens, what was made is unmade.
async fn forward(config: &Config, guest: Guest, inherited: Inherited) -> End {
    let Guest { taps, persistent, life } = guest;
    let terminal = matches!(life, Life::Command(_)).then(Terminal::note).flatten();
    let mut traces = Traces { pid_file: None, persistent };
    let (notify, notices) = unbounded_channel();
    let mut resolvers = Resolvers::read();
    let mut handles = Vec::new();
    let mut end = None;
    let secret = worker::random().and_then(|a| Ok([a, worker::random()?]));
    match secret.context(|| "start forwarding: read /dev/urandom") {
        Err(failure) => end = Some(End::Failed(failure)),
        Ok(secret) => {
            let team = Team::new(taps.len(), secret);
            for (me, tap) in taps.into_iter().enumerate() {
                let list = resolvers.list().to_vec();
                let net = config.net.clone();
                match Handle::spawn_in(&team, me as u8, tap, net, list, notify.clone())
                    .context(|| "start forwarding")
                {
                    Ok(handle) => handles.push(handle),
                    Err(failure) => {
                        end = Some(End::Failed(failure));
                        break;
                    }
                }
            }
        }
    }
    drop(notify);
    let end = match end {
        Some(end) => end,
        None => {
            let mut workers = Workers { handles: &handles, notices, resolvers: &mut resolvers };
            watch(config, &life, inherited, &mut workers, &mut traces)
                .await
                .unwrap_or_else(End::Failed)
        }
    };
    for handle in handles {
        handle.stop();
    }
    match life {
        Life::Command(init) => init.end(),
        Life::Ours(made) => create::remove(&made),
        Life::Unknown | Life::Process(_) | Life::Path(_) => {}
    }
    drop(traces);
    if let Some(terminal) = terminal {
        terminal.take_back();
    }
    end
}

/// What is left in the world while we run, and unmade when this is dropped.
struct Traces {
    pid_file: Option<std::path::PathBuf>,
    persistent: Option<OwnedFd>,
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(path) = &self.pid_file {
            let _ = fs::remove_file(path);
        }
        if let Some(tap) = &self.persistent {
            tap::leave(tap.as_fd());
        }
    }
}

/// The workers, as the control loop sees them.
struct Workers<'a> {
    handles: &'a [Handle],
    notices: UnboundedReceiver<Notice>,
    resolvers: &'a mut Resolvers,
}

impl Workers<'_> {
    /// Serves the workers until one of them ends.
    async fn serve(&mut self, life: &Life) -> End {
        loop {
            match self.notices.recv().await {
                Some(Notice::DnsUsed) => self.refresh(),
                Some(Notice::Drained) => {}
                Some(Notice::Ended(who, result)) => {
                    return worker_ended(who, self.handles.len(), result, life);
                }
                None => return End::Failed(Failure::new("all workers have ended without a word")),
            }
        }
    }

    /// Lets what is on its way to the host get there, within a bound.
    async fn drain(&mut self) {
        for handle in self.handles {
            handle.request(Request::Drain);
        }
        let all = async {
            let mut left = self.handles.len();
            while left > 0 {
                match self.notices.recv().await {
                    Some(Notice::Drained) => left -= 1,
                    Some(Notice::DnsUsed) => {}
                    Some(Notice::Ended(..)) | None => return,
                }
            }
        };
        if tokio::time::timeout(Duration::from_millis(DRAIN.0), all).await.is_err() {
            tracing::debug!("data is still on its way after {} ms: given up", DRAIN.0);
        }
    }

    fn refresh(&mut self) {
        if let Some(list) = self.resolvers.refresh() {
            for handle in self.handles {
                handle.request(Request::Resolvers(list.clone()));
            }
        }
    }
}

/// Makes the rest, says that the network is ready, and waits for the first thing that ends us.
async fn watch(
    config: &Config,
    life: &Life,
    inherited: Inherited,
    workers: &mut Workers<'_>,
    traces: &mut Traces,
) -> Result<End, Failure> {
    let Inherited { ready, exit } = inherited;
    let mut signals = watch::Signals::listen(!matches!(life, Life::Command(_)))
        .context(|| "listen for signals")?;
    let mut forwards = forwards::Forwards::new(workers.handles, &config.net);
    for forward in &config.forwards {
        forwards
            .add(forward.clone())
            .map_err(|refused| Failure::new(format!("--publish: {}", refused.line)))?;
    }
    let replace = config.personality == Personality::Slirp4netns;
    let api = match &config.api_socket {
        Some(path) => Some(
            api::Api::bind(path, replace).context(|| format!("API socket {}", path.display()))?,
        ),
        None => None,
    };
    if let Some(path) = &config.pid_file {
        write_pid_file(path)?;
        traces.pid_file = Some(path.clone());
    }
    let resolv_conf = config.net.dns.then(resolv::Watch::new).flatten();
    announce(config);
    if config.seccomp {
        seccomp::apply(needs(config, life))?;
    }
    if let Some(ready) = ready {
        say_ready(ready);
    }
    if let Life::Command(init) = life {
        init.start().context(|| "start the command")?;
    }
    let serve_api = async {
        match &api {
            Some(api) => api.serve(&mut forwards).await,
            None => std::future::pending().await,
        }
    };
    let mut serve_api = std::pin::pin!(serve_api);
    let exit = async {
        match (&exit, config.exit_fd) {
            (Some(fd), _) => watch::hung_up(fd).await.context(|| "watch the exit descriptor"),
            // It was not open: poll(2) would say POLLNVAL, which ends slirp4netns.
            (None, Some(_)) => Ok(()),
            (None, None) => std::future::pending().await,
        }
    };
    let mut exit = std::pin::pin!(exit);
    let mut over = std::pin::pin!(guest_over(life));
    // After SIGTERM the command has as long to end as data has to drain.
    let mut deadline: Option<tokio::time::Instant> = None;
    let mut told = Signal::SIGTERM;
    loop {
        tokio::select! {
            end = workers.serve(life) => return Ok(end),
            () = &mut serve_api => {}
            () = changed(resolv_conf.as_ref()) => workers.refresh(),
            result = &mut exit => {
                result?;
                if config.personality == Personality::Slirp4netns {
                    say_error("exitfd event\ndo_slirp is exiting");
                }
                return Ok(End::Code(0));
            }
            end = &mut over => {
                let end = end?;
                if matches!(life, Life::Command(_)) && deadline.is_none() {
                    drain(workers, &mut signals).await;
                }
                return Ok(end);
            }
            signal = signals.next() => match life {
                Life::Command(init) if deadline.is_none() => {
                    init.signal(signal);
                    told = signal;
                    let grace = Duration::from_millis(DRAIN.0);
                    deadline = Some(tokio::time::Instant::now() + grace);
                }
                Life::Command(_) => return Ok(End::Code(128 + signal as u8)),
                _ if config.personality == Personality::Slirp4netns => {
                    return Ok(End::Signal(signal));
                }
                _ => return Ok(End::Code(0)),
            },
            () = at(deadline) => return Ok(End::Code(128 + told as u8)),
        }
    }
}

/// What is still to be done beside forwarding.
fn needs(config: &Config, life: &Life) -> seccomp::Needs {
    let made = matches!(life, Life::Ours(_));
    seccomp::Needs {
        command: matches!(life, Life::Command(_)),
        path: made || matches!(life, Life::Path(_)),
        files: made || config.api_socket.is_some() || config.pid_file.is_some(),
        mount: made,
    }
}

async fn changed(resolv_conf: Option<&resolv::Watch>) {
    let Some(watch) = resolv_conf else { return std::future::pending().await };
    if let Err(e) = watch.changed().await {
        tracing::debug!("watch resolv.conf: {e}");
        std::future::pending().await
    }
}

/// Drains, unless a signal says that there is no time.
async fn drain(workers: &mut Workers<'_>, signals: &mut watch::Signals) {
    tokio::select! {
        () = workers.drain() => {}
        _ = signals.next() => {}
    }
}

async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of what we forward for.
async fn guest_over(life: &Life) -> Result<End, Failure> {
    match life {
        Life::Unknown => std::future::pending().await,
        Life::Process(pidfd) => {
            watch::ended(pidfd).await.context(|| "watch the guest's process")?;
            tracing::debug!("the guest's process has ended");
            Ok(End::Code(0))
        }
        Life::Path(place) | Life::Ours(Made { place, .. }) => {
            watch::gone(place).await;
            tracing::debug!("{} is gone", place.path.display());
            Ok(End::Code(0))
        }
        Life::Command(init) => command_over(init).await,
    }
}

/// Waits for the end of the command.
async fn command_over(init: &Init) -> Result<End, Failure> {
    let link = init.link();
    let watched =
        sys::readiness(link.as_fd(), Interest::READABLE).context(|| "watch the command")?;
    loop {
        let mut guard = watched.readable().await.context(|| "watch the command")?;
        match link.hear(MsgFlags::MSG_DONTWAIT) {
            Ok(Some(FromChild::Ended(code))) => return Ok(End::Code(code)),
            Ok(Some(_)) => {}
            Err(nix::Error::EAGAIN) => guard.clear_ready(),
            // Killed from outside, and the command with it.
            Ok(None) => return Ok(End::Code(128 + Signal::SIGKILL as u8)),
            Err(e) => return Err(Failure::new(format!("watch the command: {}", e.desc()))),
        }
    }
}

/// A worker ends when it is asked to, when the TAP has gone, when the ring fails, or of a panic.
fn worker_ended(who: u8, of: usize, result: io::Result<()>, life: &Life) -> End {
    // A namespace that ends takes its TAP along; which we hear of first is chance.
    let over = match life {
        Life::Process(pidfd) => watch::is_ready(pidfd),
        Life::Path(place) | Life::Ours(Made { place, .. }) => !place.is_there(),
        Life::Unknown | Life::Command(_) => false,
    };
    match result {
        _ if over => End::Code(0),
        // The others go on without an end; but a queue that nobody reads swallows what it gets.
        Ok(()) => End::Failed(Failure::new(format!("worker {who} of {of} has ended"))),
        Err(e) => {
            End::Failed(Failure::new(format!("forwarding has ended: worker {who} of {of}: {e}")))
        }
    }
}

/// What slirp4netns prints at its start, for people; and a line for our own log.
fn announce(config: &Config) {
    let (net, v4) = (&config.net, config.net.v4);
    if config.personality == Personality::Native {
        if !matches!(config.mode, Mode::Run { .. }) {
            tracing::info!("forwarding for {} on {}", v4.guest, config.tap_name);
        }
        return;
    }
    let mut text = format!(
        "Starting slirp\n\
         * MTU:             {}\n\
         * Network:         {}\n\
         * Netmask:         {}\n\
         * Gateway:         {}\n\
         * DNS:             {}\n\
         * DHCP begin:      {}\n\
         * DHCP end:        {}\n\
         * Recommended IP:  {}\n",
        net.mtu,
        v4.network,
        v4.netmask(),
        v4.gateway,
        v4.dns,
        v4.dhcp_start,
        std::net::Ipv4Addr::from(u32::from(v4.dhcp_start).wrapping_add(15)),
        v4.guest,
    );
    if let Some(path) = &config.api_socket {
        text.push_str(&format!("* API Socket:      {}\n", path.display()));
    }
    if let Some(addr) = &net.outbound_v4 {
        text.push_str(&format!("* Outbound IPv4:    {addr}\n"));
    }
    if let Some(addr) = &net.outbound_v6 {
        text.push_str(&format!("* Outbound IPv6:    {addr}\n"));
    }
    if let Some([a, b, c, d, e, f]) = net.guest_mac {
        text.push_str(&format!(
            "* MAC address:     {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}\n"
        ));
    }
    if net.host_loopback {
        text.push_str(&format!(
            "WARNING: 127.0.0.1:* on the host is accessible as {} (set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)\n",
            v4.gateway
        ));
    }
    say(text.trim_end());
}

/// One byte and the end of the pipe. slirp4netns ignores errors here: the caller may have gone on.
fn say_ready(ready: OwnedFd) {
    while nix::unistd::write(&ready, b"1") == Err(nix::Error::EINTR) {}
}

/// Writes the file whole or not at all; one that is left over is replaced.
fn write_pid_file(path: &std::path::Path) -> Result<(), Failure> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    fs::write(&partial, format!("{}\n", std::process::id()))
        .and_then(|()| fs::rename(&partial, path))
        .inspect_err(|_| drop(fs::remove_file(&partial)))
        .context(|| format!("--pid-file {}", path.display()))
}

/// The terminal whose foreground we were in before the command ran.
struct Terminal(fs::File);

impl Terminal {
    fn note() -> Option<Self> {
        let terminal = fs::File::open("/dev/tty").ok()?;
        (tcgetpgrp(&terminal) == Ok(getpgrp())).then_some(Self(terminal))
    }

    /// A shell that was our command has put its own group in the foreground, and cannot put us back: in its
    /// PID namespace our group has no number.
    fn take_back(self) {
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTTOU);
        let _ = stop.thread_block();
        let _ = tcsetpgrp(&self.0, getpgrp());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_one_worker_is_told_by_its_number() {
        let line = |result| match worker_ended(1, 2, result, &Life::Unknown) {
            End::Failed(failure) => failure.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(line(Ok(())), "worker 1 of 2 has ended");
        let e = io::Error::other("out of order");
        assert_eq!(line(Err(e)), "forwarding has ended: worker 1 of 2: out of order");
    }
}
