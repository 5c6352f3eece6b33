//! Everything beside the data path: lifetime, signals, resolvers, the API socket. Never on the packet path.
//!
//! # Theory of operation
//!
//! The main thread makes what needs a path or a right (the API socket, the file with our PID), goes behind the walls of the
//! [sandbox], starts the workers, opens the ports that were asked for, gives up the [system
//! calls](seccomp) that are not needed any more, says that the network is ready in the order that callers
//! rely on (forwarded ports and the API socket listen, then the ready byte, then the descriptor closes), and waits. The program ends by
//! the first of: a signal, the exit descriptor, the end of the guest (its process, its path, the command of `run`),
//! the end of a worker. It then stops the workers, leaves the TAP and the file system as they were, ends the
//! guest's processes where they are its own, and exits with the code that the personality gives.
//!
//! It runs on `tokio-uring`, and where io_uring is blocked for it on plain tokio: nothing here needs more. So it does when
//! the process is confined, since that ring could do what the filter forbids, and tokio-uring cannot restrict it.
//!
//! **Invariant:** from the sandbox on no path is used but `/etc/resolv.conf`. What is to be removed in the end is on the
//! list of `Traces`, and nowhere else; in the sandbox the [keeper](crate::boot::keeper) has that list.

pub mod api;
pub mod count;
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
use crate::boot::keeper::{Duties, Keeper, Kept, Word};
use crate::boot::pass::FromChild;
use crate::boot::sandbox::{self, Walls};
use crate::boot::{Context, Failure, Guest, Inherited, Init, Life, Place, seccomp, sys, tap};
use crate::config::{Config, Mode, Personality, default_workers};
use crate::limits::DRAIN;
use crate::output::{say, say_error};
use crate::worker::team::Team;
use crate::worker::{self, Handle, Notice, Request, TapQueue};
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
    let Guest { taps, persistent, life, userns } = guest;
    let terminal = matches!(life, Life::Command(_)).then(Terminal::note).flatten();
    let mut traces = Traces { duties: Duties::of(&life), keeper: None, persistent };
    let mut handles = Vec::new();
    let end = async {
        let prepared = prepare(config, &life, &mut traces)?;
        // What its control group gives it is not to be seen from behind walls.
        let processors = default_workers();
        if config.sandbox {
            traces.keeper = Keeper::start(&traces.duties)?;
            sandbox::enter(Walls::of(config), userns.as_ref())?;
            drop(userns);
        }
        let notices = start(config, taps, processors, &prepared.resolvers, &mut handles)?;
        let outlook = Outlook { walled: config.sandbox, keeper: traces.keeper.as_ref() };
        watch(config, &life, inherited, prepared, &handles, notices, &outlook).await
    };
    let end = end.await.unwrap_or_else(End::Failed);
    if tracing::enabled!(tracing::Level::DEBUG) && !handles.is_empty() {
        let (stats, count) = count::totals(&handles);
        tracing::debug!("by {count} of {} workers: {stats}", handles.len());
    }
    for handle in handles {
        handle.stop();
    }
    if let Life::Command(init) = life {
        init.end();
    }
    drop(traces);
    if let Some(terminal) = terminal {
        terminal.take_back();
    }
    end
}

/// What is made before the walls.
struct Prepared {
    signals: watch::Signals,
    api: Option<api::Api>,
    resolvers: Resolvers,
    resolv_conf: Option<resolv::Watch>,
}

/// Makes what needs a path or a right, and notes what of it is to be unmade.
fn prepare(config: &Config, life: &Life, traces: &mut Traces) -> Result<Prepared, Failure> {
    let signals = watch::Signals::listen(!matches!(life, Life::Command(_)))
        .context(|| "listen for signals")?;
    let (replace, name) = match config.personality {
        Personality::Slirp4netns => (true, "API socket"),
        Personality::Native => (false, "--api"),
    };
    let api = match &config.api_socket {
        Some(path) => {
            let (api, file) =
                api::Api::bind(path, replace).context(|| format!("{name} {}", path.display()))?;
            traces.duties.files.push(file);
            Some(api)
        }
        None => None,
    };
    if let Some(path) = &config.pid_file {
        write_pid_file(path)?;
        let kept = Kept::note(path).context(|| format!("--pid-file {}", path.display()))?;
        traces.duties.files.push(kept);
    }
    let resolv_conf = config.net.dns.then(resolv::Watch::new).flatten();
    Ok(Prepared { signals, api, resolvers: Resolvers::read(), resolv_conf })
}

/// Starts the workers, into `handles`, so that those that run are stopped when one does not.
fn start(
    config: &Config,
    taps: Vec<TapQueue>,
    processors: usize,
    resolvers: &Resolvers,
    handles: &mut Vec<Handle>,
) -> Result<UnboundedReceiver<Notice>, Failure> {
    const STEP: &str = "start forwarding";
    let (notify, notices) = unbounded_channel();
    let secret = worker::random().and_then(|a| Ok([a, worker::random()?]));
    let team = Team::new(taps.len(), processors, secret.context(|| STEP)?);
    for (me, tap) in taps.into_iter().enumerate() {
        let (list, net) = (resolvers.list().to_vec(), config.net.clone());
        let handle = Handle::spawn_in(&team, me as u8, tap, net, list, notify.clone());
        handles.push(handle.context(|| STEP)?);
    }
    Ok(notices)
}

/// What is left in the world while we run, and unmade when this is dropped.
struct Traces {
    duties: Duties,
    /// Who does it, in the sandbox.
    keeper: Option<Keeper>,
    persistent: Option<OwnedFd>,
}

impl Drop for Traces {
    fn drop(&mut self) {
        match self.keeper.take() {
            Some(keeper) => keeper.finish(),
            None => self.duties.carry_out(),
        }
        if let Some(tap) = &self.persistent {
            tap::leave(tap.as_fd());
        }
    }
}

/// Who sees whether a path is gone.
struct Outlook<'a> {
    /// We see nothing but what the sandbox has.
    walled: bool,
    keeper: Option<&'a Keeper>,
}

impl Outlook<'_> {
    /// Whether the path is known to be gone.
    fn is_gone(&self, place: &Place) -> bool {
        match self.keeper {
            Some(keeper) => keeper.word() == Word::Gone,
            None => !self.walled && !place.is_there(),
        }
    }

    /// Waits until it is.
    async fn gone(&self, place: &Place) -> Result<(), Failure> {
        match self.keeper {
            Some(keeper) => keeper_says_gone(keeper).await,
            None if self.walled => std::future::pending().await,
            None => {
                watch::gone(place).await;
                Ok(())
            }
        }
    }
}

/// Waits for the keeper's word.
async fn keeper_says_gone(keeper: &Keeper) -> Result<(), Failure> {
    let step = || "listen to the keeper";
    let watched = sys::readiness(keeper.link(), Interest::READABLE).context(step)?;
    loop {
        let mut guard = watched.readable().await.context(step)?;
        match keeper.word() {
            Word::Gone => return Ok(()),
            Word::Nothing => guard.clear_ready(),
            Word::Died => {
                tracing::warn!(
                    "somebody has killed the keeper (process ringtap-keeper): the end of the path will not be seen, and what was made stays in the end"
                );
                std::future::pending().await
            }
        }
    }
}

/// The workers, as the control loop sees them.
struct Workers<'a> {
    handles: &'a [Handle],
    notices: UnboundedReceiver<Notice>,
    resolvers: Resolvers,
    life: &'a Life,
    outlook: &'a Outlook<'a>,
}

impl Workers<'_> {
    /// Serves the workers until one of them ends.
    async fn serve(&mut self) -> End {
        loop {
            match self.notices.recv().await {
                Some(Notice::DnsUsed) => self.refresh(),
                Some(Notice::Drained) => {}
                Some(Notice::Ended(who, result)) => {
                    // A namespace that ends takes its TAP along; which we hear of first is chance.
                    let over = match self.life {
                        Life::Process(pidfd) => watch::is_ready(pidfd),
                        Life::Path(place) | Life::Ours(Made { place, .. }) => {
                            self.outlook.is_gone(place)
                        }
                        Life::Peer => {
                            matches!(&result, Err(e) if e.kind() == io::ErrorKind::BrokenPipe)
                        }
                        Life::Unknown | Life::Command(_) => false,
                    };
                    return worker_ended(who, self.handles.len(), result, over);
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

/// Opens the ports, says that the network is ready, and waits for the first thing that ends us.
async fn watch(
    config: &Config,
    life: &Life,
    inherited: Inherited,
    prepared: Prepared,
    handles: &[Handle],
    notices: UnboundedReceiver<Notice>,
    outlook: &Outlook<'_>,
) -> Result<End, Failure> {
    let Inherited { ready, exit } = inherited;
    let Prepared { mut signals, api, resolvers, resolv_conf } = prepared;
    let mut workers = Workers { handles, notices, resolvers, life, outlook };
    let mut forwards = forwards::Forwards::new(handles, &config.net);
    for forward in &config.forwards {
        forwards
            .add(forward.clone())
            .await
            .map_err(|refused| Failure::new(format!("--publish: {}", refused.line)))?;
    }
    announce(config);
    if config.seccomp {
        seccomp::apply(needs(config, life, outlook))?;
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
    let mut over = std::pin::pin!(guest_over(life, outlook));
    // After SIGTERM the command has as long to end as data has to drain.
    let mut deadline: Option<tokio::time::Instant> = None;
    let mut told = Signal::SIGTERM;
    loop {
        tokio::select! {
            end = workers.serve() => return Ok(end),
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
                    drain(&mut workers, &mut signals).await;
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
fn needs(config: &Config, life: &Life, outlook: &Outlook<'_>) -> seccomp::Needs {
    let made = matches!(life, Life::Ours(_));
    let command = matches!(life, Life::Command(_));
    // In the sandbox the rest is the keeper's.
    let open = !outlook.walled;
    seccomp::Needs {
        command,
        child: command || outlook.keeper.is_some(),
        path: open && (made || matches!(life, Life::Path(_))),
        files: open && (made || config.api_socket.is_some() || config.pid_file.is_some()),
        mount: open && made,
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
async fn guest_over(life: &Life, outlook: &Outlook<'_>) -> Result<End, Failure> {
    match life {
        Life::Unknown | Life::Peer => std::future::pending().await,
        Life::Process(pidfd) => {
            watch::ended(pidfd).await.context(|| "watch the guest's process")?;
            tracing::debug!("the guest's process has ended");
            Ok(End::Code(0))
        }
        Life::Path(place) | Life::Ours(Made { place, .. }) => {
            outlook.gone(place).await?;
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
fn worker_ended(who: u8, of: usize, result: io::Result<()>, over: bool) -> End {
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
        let line = |result| match worker_ended(1, 2, result, false) {
            End::Failed(failure) => failure.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(line(Ok(())), "worker 1 of 2 has ended");
        let e = io::Error::other("out of order");
        assert_eq!(line(Err(e)), "forwarding has ended: worker 1 of 2: out of order");
    }
}
