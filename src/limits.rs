//! Every bound and size in one place, with asserts that they agree.
//!
//! Overload is a counted, named drop or a refusal; these numbers say where it begins.

use std::time::Duration;

use crate::time::Millis;

/// Length of `struct virtio_net_hdr` as a TAP with `IFF_VNET_HDR` uses it (linux/virtio_net.h).
pub const VNET_LEN: usize = 10;
/// Length of an Ethernet header without VLAN tag.
pub const ETH_LEN: usize = 14;
/// Room kept free in front of payload received from the host: virtio, Ethernet, IPv6 and TCP or
/// UDP headers (10 + 14 + 40 + 20), rounded up to a cache line.
pub const HEADROOM: usize = 128;
/// The longest frame a TAP can hand over: `gso_max_size` 65536, Ethernet with VLAN, virtio header.
pub const FRAME_MAX: usize = 65536 + ETH_LEN + 4 + VNET_LEN;
/// Bytes of one large slot: a frame from the guest, or [`HEADROOM`] and 64 KiB from the host.
pub const SLOT_BYTES: usize = 17 * 4096;
/// Large slots one worker may touch. Address space is reserved; memory is used from the bottom up.
pub const SLOTS_MAX: u32 = 512;
/// Bytes of one small slot: control frames, backlog, retained pieces.
pub const BLOCK_BYTES: usize = 4096;
/// Small slots one worker may touch (64 MiB): the bound on the sum of all backlogs.
pub const BLOCKS_MAX: u32 = 16384;
/// Small slots that only control frames (ACKs, RSTs, ARP, ...) may take, so that a full backlog
/// never silences the protocol.
pub const BLOCKS_RESERVED: u32 = 256;

/// Buffers that nobody has used for this long are given back to the system.
pub const TRIM: Millis = Millis::secs(2);

/// The most payload one IPv4 or IPv6 datagram to the guest carries after its IP header.
pub const IP_LEN_MAX: usize = 65535;

/// MTU accepted from the operator: RFC 791 asks for 68; the kernel's TAP allows 65521.
pub const MTU_MIN: u16 = 68;
/// See [`MTU_MIN`]; IPv6 needs at least 1280 (RFC 8200 section 5).
pub const MTU_MAX: u16 = 65521;
/// The smallest MTU at which IPv6 works (RFC 8200 section 5).
pub const MTU_MIN_V6: u16 = 1280;

/// Workers at most, and so queues of a TAP.
pub const WORKERS_MAX: usize = 8;
/// Frames that wait at one worker for being taken over from the others, at most.
pub const HAND_OVER_FRAMES: usize = 1024;
/// Bytes of them at most: two full windows of TCP.
pub const HAND_OVER_BYTES: usize = 2 << 20;
/// Frames one worker takes over in a turn, so that its own queue is served, too.
pub const HAND_OVER_TURN: usize = 64;
/// Accepted connections that wait at one worker for being taken over from the others, at most.
pub const HAND_OVER_CONNECTIONS: usize = 256;
/// A listening socket that could not accept (no descriptor, no memory) tries again after this long.
pub const ACCEPT_RETRY: Millis = Millis(100);
/// Requests of control that a worker carries out in a turn, and sockets of forwarded ports that it closes, so that ten
/// thousand ports at once hold up nobody's bytes.
pub const REQUESTS_TURN: usize = 128;
/// How long a worker watches for the next message before it sleeps: as long as most answers on one machine take.
pub const SPIN: Duration = Duration::from_micros(50);
/// Work of a turn up to which it does so: a completion counts one, and each 256 bytes one more.
pub const SPIN_WORK: u32 = 16;
/// A worker that gave way meanwhile and was away for so long has met others who want its processor (longer than whom it
/// waits for takes to answer), and does without for some turns: at first the least, and four times as many each time, up
/// to the most.
pub const SPIN_YIELD: Duration = Duration::from_micros(200);
/// See [`SPIN_YIELD`].
pub const SPIN_REST: (u32, u32) = (16, 4096);
/// A worker that gets a connection's first segment leaves the connection to one that has this many fewer.
pub const PLACE_GAP: u32 = 2;
/// Connections that may be left so within a second, all workers together: a flood of short ones is over before it is
/// worth the way.
pub const PLACE_RATE: u32 = 64;

/// A connection that carries so many bytes within [`BULK_WITHIN`] is one of those that make a worker busy.
pub const BULK_BYTES: u32 = 8 << 20;
/// See [`BULK_BYTES`].
pub const BULK_WITHIN: Millis = Millis(250);
/// Such connections that a worker knows of, at most.
pub const BULK_MOST: usize = 64;
/// One that did not for so long is none any more.
pub const BULK_LAPSE: Millis = Millis(500);
/// A worker that has this many more of them than another gives it one.
pub const BULK_GAP: u32 = 2;
/// It must have had them for so long, and have neither given nor got one for so long.
pub const BULK_CALM: Millis = Millis(400);
/// A connection that is to go stays if it is not at rest for longer.
pub const MIGRATE_PATIENCE: Millis = Millis(100);
/// Its guest must have been silent for so long: a thousand frames of others may be before its own in the queue.
pub const MIGRATE_HUSH: Millis = Millis(20);
/// It counts as silence only while the worker looks at least so often.
pub const MIGRATE_HUSH_GAP: Millis = Millis(5);
/// Connections on their way between workers, at most; each may have a window of bytes along.
pub const MIGRANTS: usize = WORKERS_MAX;

/// Connections of the guest by a worker to one host address that may come to nothing at once, or be under way. Not more
/// may be begun until they work; where the last one worked, [`OPENINGS_PROVEN_MOST`] may.
pub const OPENINGS_ADDRESS_MOST: u32 = 512;
/// How often time brings one more.
pub const OPENINGS_ADDRESS_EVERY: Millis = Millis(4);
/// The same to all addresses. A thousand refused connections cost a worker a tenth of a second at most.
pub const OPENINGS_MOST: u32 = 1024;
/// See [`OPENINGS_MOST`].
pub const OPENINGS_EVERY: Millis = Millis(2);
/// The same to endpoints to which the last connection worked.
pub const OPENINGS_PROVEN_MOST: u32 = 4096;
/// See [`OPENINGS_PROVEN_MOST`].
pub const OPENINGS_PROVEN_EVERY: Millis = Millis(1);
/// As [`OPENINGS_ADDRESS_MOST`], of mappings of UDP and ping whose first destination has not answered yet. A server's
/// many clients that begin at once have to fit in.
pub const MAPPINGS_ADDRESS_MOST: u32 = 1024;
/// As [`OPENINGS_ADDRESS_EVERY`].
pub const MAPPINGS_ADDRESS_EVERY: Millis = Millis(2);
/// As [`OPENINGS_MOST`]. Two thousand a second by two workers cost the other flows a fiftieth.
pub const MAPPINGS_MOST: u32 = 2048;
/// As [`OPENINGS_EVERY`].
pub const MAPPINGS_EVERY: Millis = Millis(1);
/// As [`OPENINGS_PROVEN_MOST`].
pub const MAPPINGS_PROVEN_MOST: u32 = 4096;
/// As [`OPENINGS_PROVEN_EVERY`].
pub const MAPPINGS_PROVEN_EVERY: Millis = Millis(1);
/// Places for host addresses, each with its own count.
pub const OPENINGS_ADDRESSES: usize = 256;
/// Places for endpoints to which the last flow worked.
pub const OPENINGS_PROOFS: usize = 1024;

/// Flows of all kinds one worker keeps; each holds one descriptor of the process, whose limit all
/// workers share.
pub const FLOWS_MAX: u32 = 1 << 16;

/// Descriptors that the process needs beside one for each flow: rings, TAP, logs, resolvers.
pub const DESCRIPTORS_OWN: u64 = 64;

/// Connections that wait on a forwarded TCP port for being accepted, at most; the kernel takes `net.core.somaxconn`
/// where that is less.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Longest path of a socket, bytes: `sun_path` has 108 with the NUL (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;
/// Clients of the API socket served at a time; more wait in the kernel's queue.
pub const API_CLIENTS_MAX: usize = 128;
/// A client of the API socket has this long to send its request, and as long to take the answer; a removed forward's
/// ports have as long to become free.
pub const API_PATIENCE: Millis = Millis::secs(5);
/// Bytes of one request at which it is refused, as in slirp4netns.
pub const API_REQUEST_MAX: usize = 4096;

/// Descriptors at most that are kept for the workers, each its part, and that forwarded ports may not take.
pub const DESCRIPTORS_DIVIDED: u32 = 4096;

/// Entries of the submission queue of a worker's ring.
pub const SQ_ENTRIES: u32 = 1024;
/// Entries of the completion queue: more than all buffers and a burst of one-shot operations, since
/// a full queue ends multishot operations.
pub const CQ_ENTRIES: u32 = 8192;
/// Large slots that the kernel holds for frames from the guest. Few, so that they stay in L2.
pub const TAP_SLOTS: u16 = 16;
/// Large slots that the kernel holds for data from host sockets.
pub const HOST_SLOTS: u16 = 8;
/// What is left of the large slots for these reads when others want some.
pub const SLOTS_FOR_READS: u32 = (TAP_SLOTS + HOST_SLOTS) as u32;
/// Large slots that the kernel holds for datagrams from host sockets. A datagram takes one, however small, and
/// touches no more of it than it fills; with few, each turn would end the receives and arm them again.
pub const DGRAM_SLOTS: u16 = 32;

/// Slots one TCP send carries at most (iovecs of one `sendmsg`).
pub const SEND_SLOTS: usize = 16;
/// Slots that one TCP receive fills at most, where a host socket holds that much already.
pub const RECV_SLOTS: usize = 4;
/// Receive window offered to a guest in the SYN-ACK, bytes.
pub const WINDOW_INITIAL: u32 = 65535;
/// The largest receive window offered to a guest, bytes.
pub const WINDOW_MAX: u32 = 1 << 20;
/// The window grows to this many of a guest's longest segments at most. A TAP's queue drops beyond 1000
/// frames, and a guest that cuts by itself (no offloads) fills it with frames of one MSS each.
pub const WINDOW_FRAMES: u32 = 512;
/// Window scale offered to the guest (RFC 7323): covers [`WINDOW_MAX`] in 16 bits.
pub const WINDOW_SCALE: u8 = 7;
/// Segments of a guest that one flow keeps for the time when what precedes them has come: a whole window of a guest
/// that leaves cutting to the device. Only while half of the large slots are free.
pub const EARLY_SLOTS: usize = 16;
/// They are given up after this long: the guest's timer has sent the first of what is missing again, or will not.
pub const EARLY_LIFE: Millis = Millis::secs(1);
/// Bytes in flight to a guest that it has not acknowledged, per flow, at most.
pub const UNACKED_MAX: u32 = 1 << 20;
/// A flow whose host socket takes nothing moves what it holds to small slots after this long; well
/// below the guest's minimal retransmission timer of 200 ms.
pub const STALL: Millis = Millis(40);

/// An ACK for little data waits this long for an answer that carries it. Short, so that a guest that sends
/// its request in two pieces and holds the second back for the ACK of the first (Nagle) loses no time;
/// and tried only with hosts that answer as fast.
pub const ACK_DELAY: Millis = Millis(2);
/// Pieces, of less than [`PIECE_BYTES`] on average, that one flow keeps apart for the guest's ACK; more are packed.
pub const PIECES_MAX: usize = 32;
/// See [`PIECES_MAX`].
pub const PIECE_BYTES: u32 = 512;

/// First retransmission timeout towards the guest; doubles each time (RFC 6298 section 5.5).
pub const RTO_MIN: Millis = Millis(300);
/// The longest retransmission timeout.
pub const RTO_MAX: Millis = Millis::secs(30);
/// Retransmissions of the same bytes before the flow is reset.
pub const RETRIES_MAX: u8 = 12;
/// Retransmissions of a SYN-ACK before its connection is given up (tcp(7) has 5 and a longer first wait).
pub const SYN_ACK_RETRIES_MAX: u8 = 6;
/// Retransmissions of a SYN to a guest that does not answer: 19 s in all, while the peer believes it is connected.
pub const SYN_RETRIES_MAX: u8 = 5;
/// Longest interval between zero-window probes.
pub const PROBE_MAX: Millis = Millis::secs(60);
/// An idle open TCP flow probes the guest after this long.
pub const TCP_IDLE: Millis = Millis::secs(600);
/// A half-closed TCP flow probes the guest after this long idle.
pub const TCP_HALF_IDLE: Millis = Millis::secs(60);
/// Unanswered keep-alive probes before the flow is reset, [`TCP_PROBE_GAP`] apart.
pub const TCP_PROBES_MAX: u8 = 6;
/// Time between keep-alive probes.
pub const TCP_PROBE_GAP: Millis = Millis::secs(15);

/// Source ports tried for a connection to the guest whose own is taken.
pub const SHOWN_PORT_TRIES: u32 = 64;
/// Neighbours in the guest's network that a worker knows or asks for.
pub const NEIGHBOURS_MAX: usize = 32;
/// Time between two questions for a neighbour that does not answer.
pub const NEIGHBOUR_GAP: Millis = Millis::secs(1);
/// Questions before it is given up: more than duplicate address detection takes.
pub const NEIGHBOUR_TRIES: u8 = 5;
/// A neighbour that has said where it is is asked again after this long, when it is next needed.
pub const NEIGHBOUR_FRESH: Millis = Millis::secs(30);
/// Connections that wait for neighbours at one time; more are refused.
pub const NEIGHBOUR_WAITING: usize = 1024;

/// Idle time after which a UDP mapping ends (RFC 4787 REQ-5 asks for 2 minutes or more).
pub const UDP_IDLE: Millis = Millis::secs(240);
/// Idle time of a ping mapping (RFC 5508 REQ-2: 60 s or more).
pub const PING_IDLE: Millis = Millis::secs(60);
/// Endpoints one UDP mapping remembers having sent to (its filter); the oldest makes room.
pub const UDP_PEERS_MAX: usize = 256;
/// Idle time of a mapping that has only sent to port 53: a query and its answer, or a second try. (RFC 4787
/// REQ-5 lets well-known ports have times of their own.)
pub const UDP_DNS_IDLE: Millis = Millis::secs(10);
/// Peers that each mapping may remember without asking.
pub const PEERS_OWN: usize = 8;
/// Peers beyond [`PEERS_OWN`] that all mappings of a worker remember together (4 MB).
pub const PEERS_SHARED: u32 = 1 << 16;
/// Peers remembered of all that have come to one guest endpoint by ports of the host, at most.
pub const FORWARD_PEERS_MAX: usize = 4096;
/// As [`PEERS_SHARED`], for such endpoints: strangers take nothing from what the guest itself may remember.
pub const FORWARD_PEERS_SHARED: u32 = 1 << 16;
/// When there is room for no more flows (or mappings, where one is begun) than this, each new one ends the UDP or ping
/// mapping that has been silent longest, if that is [`EVICT_IDLE`]: as many as one turn can ask for.
pub const EVICT_AHEAD: u32 = 256;
/// See [`EVICT_AHEAD`].
pub const EVICT_IDLE: Millis = Millis::secs(2);
/// Places, and common descriptors, that UDP and ping mappings leave to others, or an eighth where that is less.
pub const EVICT_RESERVE: u32 = 1024;
/// Mappings that end, likewise, when the process has no descriptor left for a socket.
pub const EVICT_BATCH: usize = 8;
/// Datagrams that one frame of the guest may carry at most as a run (`UDP_MAX_SEGMENTS` of
/// linux/udp.h: 128, and 64 before 6.9).
pub const UDP_RUN_MAX: usize = 128;
/// Datagrams that leave by one send (`UDP_SEGMENT`): what every kernel takes.
pub const UDP_SEND_SEGMENTS: usize = 64;
/// Bytes that leave by one send of a run. A total of 65507 is cut in software on its way (kernel 6.18);
/// this much stays whole.
pub const UDP_SEND_BYTES: usize = 65000;
/// Bytes of socket buffer asked for each way of a datagram socket; the kernel gives at most
/// `net.core.rmem_max` and `wmem_max`.
pub const SOCKET_BUFFER: usize = 4 << 20;
/// Datagrams of the guest under reassembly at most; the oldest makes room.
pub const REASSEMBLIES_MAX: usize = 16;
/// Ranges between gaps that one of them may have: in order there is one, in any order few.
pub const RANGES_MAX: usize = 32;
/// Large slots that reassembly leaves to others.
pub const REASSEMBLY_RESERVED: u32 = 64;
/// Time a fragmented datagram may take to arrive (RFC 1122 3.3.2 gives 60 to 120 s; this path is memory).
pub const REASSEMBLY_TIMEOUT: Millis = Millis::secs(15);

/// A resolver that has not answered for this long gives way to the next.
pub const DNS_RETRY: Millis = Millis(2000);
/// A DNS query lives this long at most.
pub const DNS_LIFE: Millis = Millis::secs(10);
/// DNS queries in flight at most.
pub const DNS_PENDING_MAX: u32 = 1024;
/// Shortest time between two notices that DNS is used.
pub const DNS_NOTICE: Millis = Millis::secs(1);
/// Resolvers used at most.
pub const RESOLVERS_MAX: usize = 8;

/// Lifetime of the gateway as default router and resolver in its advertisements, seconds.
pub const RA_LIFETIME_SECS: u64 = 1800;
/// Valid and preferred lifetime of the advertised prefix, seconds (those of slirp4netns).
pub const RA_VALID_SECS: u64 = 86400;
/// See [`RA_VALID_SECS`].
pub const RA_PREFERRED_SECS: u64 = 14400;
/// Time between router advertisements that nobody asked for: a third of their lifetime, so that one
/// may be lost (RFC 4861 section 6.2.1). The only thing that wakes an idle worker.
pub const RA_INTERVAL: Millis = Millis::secs(600);

/// DHCP leases: `.15` to `.30`, as in slirp4netns.
pub const DHCP_LEASES: usize = 16;
/// Duration of a DHCP lease, seconds.
pub const DHCP_LEASE_SECS: u32 = 86400;
/// How long an address is kept for a client that it was offered to.
pub const DHCP_OFFER: Millis = Millis::secs(60);
/// How long an address is left alone that a client found in use.
pub const DHCP_DECLINED: Millis = Millis::secs(600);

/// Frames that the TAP's queue holds before the guest's datagrams are lost (`txqueuelen`, 1000 unless set): some
/// milliseconds of a busy sender, so that a worker may lose its processor for that long.
pub const TAP_QUEUE: u32 = 4096;
/// A TAP in use is tried this often again, [`TAP_RETRY`] apart, before it is refused.
pub const TAP_TRIES: usize = 50;
/// See [`TAP_TRIES`]. A killed holder lets go within 20 ms; a busy machine takes longer.
pub const TAP_RETRY: Millis = Millis(10);

/// How long the index of the interface of `--outbound-addr` is taken for true.
pub const INTERFACE_FRESH: Millis = Millis(100);

/// Frames that wait for a guest behind a socket (`--target-type=bess`) that is slow.
pub const PACKETS_WAITING: usize = 4096;
/// Those among them that keep a slot of their own: the others of [`SLOTS_MAX`] go on working.
pub const SLOTS_WAITING: usize = 256;

/// Drain time after the command of `ringtap run` ends.
pub const DRAIN: Millis = Millis::secs(5);

const _: () = assert!(WORKERS_MAX <= 1 << 8);
const _: () = assert!(HAND_OVER_BYTES > 2 * SLOT_BYTES);
const _: () = assert!(RECV_SLOTS <= SEND_SLOTS);
const _: () = assert!(PACKETS_WAITING < BLOCKS_MAX as usize && SLOTS_WAITING < SLOTS_MAX as usize);
const _: () = assert!(SLOT_BYTES >= FRAME_MAX);
const _: () = assert!(SLOT_BYTES >= HEADROOM + IP_LEN_MAX);
const _: () = assert!(REASSEMBLIES_MAX as u32 + REASSEMBLY_RESERVED < SLOTS_MAX);
const _: () = assert!(PEERS_OWN < UDP_PEERS_MAX);
const _: () = assert!(EVICT_AHEAD < FLOWS_MAX && EVICT_AHEAD >= TAP_SLOTS as u32);
const _: () = assert!(RA_INTERVAL.0 * 2 < RA_LIFETIME_SECS * 1000);
const _: () = assert!(WINDOW_MAX >> WINDOW_SCALE <= 65535);
const _: () = assert!(HEADROOM >= VNET_LEN + ETH_LEN + 40 + 60);
const _: () = assert!(CQ_ENTRIES > 2 * SQ_ENTRIES + (TAP_SLOTS + HOST_SLOTS + DGRAM_SLOTS) as u32);
