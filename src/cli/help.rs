//! Help texts of the native commands. 80 columns wide; a test holds them to the options that exist.

/// `ringtap --help`.
pub(super) const PROGRAM: &str = "\
ringtap: a fast network for rootless containers

Usage: ringtap run [OPTIONS] [--] [COMMAND [ARGUMENT...]]
       ringtap attach [OPTIONS] PID|NETNS_PATH
       ringtap create [OPTIONS] PATH
       ringtap port add|list|remove --api PATH [SPEC|ID]
       ringtap doctor

A network namespace that an ordinary user made has no way out. ringtap puts a
TAP into it and carries what comes out of there over ordinary sockets.

Commands:
  run      make namespaces, give them a network, run a command there
  attach   give a network to a namespace that someone else made
  create   make a network namespace, keep it at a path, and forward for it
  port     forward more ports into a guest that runs, list them, end them
  doctor   look at this machine: what works, what is slow or missing, and why

  ringtap COMMAND --help tells the options of each.
  -h, --help       this text
  -V, --version    version, and the oldest kernel that works

Example: a shell with a network of its own, as an ordinary user
  ringtap run

Under the name slirp4netns (a link is enough) the program takes that program's
command line.";

/// `ringtap run --help`.
pub(super) const RUN: &str = "\
Usage: ringtap run [OPTIONS] [--] [COMMAND [ARGUMENT...]]

Makes a user, a network and a mount namespace, gives them a network and runs
COMMAND there, or your shell. Ends with COMMAND, with its exit code; by then
nothing is left behind. The first word that is no option is COMMAND: what
follows belongs to it.

      --keep-uid           stay the user you are; without it you are root inside
";

/// `ringtap attach --help`.
pub(super) const ATTACH: &str = "\
Usage: ringtap attach [OPTIONS] PID|NETNS_PATH

Gives a network to a namespace that someone else made: that of the process PID,
or the one at NETNS_PATH. Stays in the foreground. Ends when the process does
or the path is removed, on SIGTERM, and when --exit-fd hangs up.

      --userns PATH        the user namespace to enter first; without it that of
                           PID, or the one that owns NETNS_PATH
      --no-configure       leave addresses, routes and link state to the caller
";

/// `ringtap create --help`.
pub(super) const CREATE: &str = "\
Usage: ringtap create [OPTIONS] PATH

Makes a network namespace, keeps it at PATH as `ip netns add` would, and
forwards for it until it is stopped or PATH is removed. Needs the right to
mount at PATH: root, or a user inside `unshare --user --map-root --mount`.
";

/// What `attach` and `create` have in common.
pub(super) const LIFETIME: &str = "
      --ready-fd FD        write one byte, '1', to FD when the network is ready
      --exit-fd FD         end when the other side of FD is closed
      --pid-file FILE      keep the process id in FILE while running
";

/// What every verb that forwards has.
pub(super) const COMMON: &str = "
      --mtu N              largest IP packet, 68 to 65521 (1500; larger is not
                           faster here)
      --cidr NETWORK/LEN   the guest's IPv4 network (10.0.2.0/24): gateway .2,
                           DNS .3, the guest's own address .100
      --mac MAC            MAC of the guest's interface (random)
      --tap-name NAME      name of the guest's interface (tap0)
      --workers N          threads that forward, 1 to 8, each with a queue of
                           the interface if it has several (one for each core)
  -p, --publish SPEC       forward a port of this host into the guest; may be
                           given again: [ADDRESS:]PORT[:GUEST_PORT][/udp],
                           see ringtap port --help
      --api PATH           make a socket at PATH for ringtap port
      --no-ipv6            IPv4 only
      --no-dns             no DNS forwarder, and no resolv.conf of ours
      --host-loopback      let the guest reach 127.0.0.1 of this host at the
                           gateway's address
      --outbound-addr A    where outgoing IPv4 leaves from: an address of this
                           host, or an interface
      --outbound-addr6 A   the same for IPv6
      --no-sandbox         keep sight of all files, and all rights; without it
                           only /etc and /run are seen, and read
      --no-seccomp         keep all system calls

  -v, --verbose            log more; twice: everything but packets
  -q, --quiet              log less
      --log-level LEVEL    error, warn, info or debug
  -h, --help               this text
";

/// Examples, one for each verb.
pub(super) const RUN_EXAMPLE: &str = "
Example: fetch a page from a namespace of your own
  ringtap run curl -sI https://www.kernel.org/";
/// See [`RUN_EXAMPLE`].
pub(super) const ATTACH_EXAMPLE: &str = "
Example: a network for a shell in another terminal
  unshare --user --map-root --net sh -c 'echo $$; exec sh'     # prints 4711
  ringtap attach 4711";
/// See [`RUN_EXAMPLE`].
pub(super) const CREATE_EXAMPLE: &str = "
Example: a namespace for `ip netns exec`, as root
  ringtap create /run/netns/lab &
  ip netns exec lab ping -c 1 10.0.2.2";

/// `ringtap port --help`.
pub(super) const PORT: &str = "\
Usage: ringtap port add --api PATH SPEC
       ringtap port list --api PATH
       ringtap port remove --api PATH ID

Asks a ringtap that runs, and was given --api PATH (a slirp4netns that was given
--api-socket PATH understands it, too), to forward ports of this host into its
guest. `add` prints the new forward's ID. A forward is there as a whole or not
at all. One that is removed takes no new connections; those it has go on.

SPEC, here and for --publish:
  [ADDRESS:]PORT[-PORT][:[GUEST_ADDRESS:]PORT[-PORT]][/tcp|/udp]

  8080:80              port 8080 of every IPv4 address to port 80 of the guest
  8080                 to the same port of the guest
  127.0.0.1:8080:80    of one address
  [::]:8080:80         IPv6: brackets around addresses; `[::]` is all of them
  5353:53/udp          UDP; without it, and with /tcp, TCP
  8000-8099:9000       a hundred ports, to 9000 and those that follow it
  %eth0:8080:80        of one interface; after an address, too: 192.0.2.7%eth0
  8080:10.0.2.15:80    to another address than the guest's own

The guest sees who connects; peers on this host are shown as the gateway. Ports
below 1024 need the right: see the sysctl net.ipv4.ip_unprivileged_port_start.

      --api PATH           the socket of the ringtap to ask
  -h, --help               this text

Example
  ringtap run --api /tmp/api python3 -m http.server 80 &
  ringtap port add --api /tmp/api 127.0.0.1:8080:80";

/// `ringtap doctor --help`.
pub(super) const DOCTOR: &str = "\
Usage: ringtap doctor

Looks at this machine and tells, a line for each thing ringtap uses, whether it
works, what will be slower or missing, and the remedy. Changes nothing. Run it
as the user who will run ringtap. Exit code 0: ringtap can run here; 1: it
cannot.

Example
  ringtap doctor | grep -v ^ok";

/// `slirp4netns --help`. Callers search it for option names, as words of their own.
pub(super) fn slirp4netns(name: &str) -> String {
    format!("Usage: {name} [OPTION]... PID|PATH|FD [TAPNAME]\n{SLIRP4NETNS}")
}

const SLIRP4NETNS: &str = "\
A network for an unprivileged network namespace (ringtap under this name).

-c, --configure          bring lo and the TAP up, with address and route
-e, --exit-fd=FD         end when the other side of FD is closed
-r, --ready-fd=FD        write '1' to FD when the network is ready
-m, --mtu=MTU            MTU (default=1500, max=65521)
-6, --enable-ipv6        IPv6 by router advertisement
-a, --api-socket=PATH    API socket
--cidr=CIDR              IPv4 network of the guest (default=10.0.2.0/24)
--disable-host-loopback  keep the guest from 127.0.0.1:* of the host
--netns-type=TYPE        what the operand is: pid, path or tapfd (default=pid)
--userns-path=PATH       user namespace to enter first
--enable-sandbox         run in a mount namespace of its own, without capabilities
--enable-seccomp         restrict system calls and io_uring
--outbound-addr=ADDR     source of outgoing IPv4: an address or an interface
--outbound-addr6=ADDR    source of outgoing IPv6: an address or an interface
--disable-dns            no DNS at 10.0.2.3 (or the address that --cidr implies)
--macaddress=MAC         MAC of the TAP (only with -c)
--target-type=TYPE       netns, or bess: a socket at PATH (default=netns)
-h, --help               this text
-v, --version            version";

/// The help text of a command.
pub(super) fn page(command: &str) -> String {
    let (about, example) = own(command);
    let common: &[&str] = match command {
        "run" => &[COMMON],
        "attach" | "create" => &[LIFETIME, COMMON],
        _ => &[],
    };
    [&[about], common, &[example]].concat().concat()
}

/// What of a command's help text no other command has: what it is with its options, and an example. The man page
/// is made of these (`build/`).
pub(super) fn own(command: &str) -> (&'static str, &'static str) {
    match command {
        "run" => (RUN, RUN_EXAMPLE),
        "attach" => (ATTACH, ATTACH_EXAMPLE),
        "create" => (CREATE, CREATE_EXAMPLE),
        "port" => (PORT, ""),
        "doctor" => (DOCTOR, ""),
        _ => ("", ""),
    }
}
