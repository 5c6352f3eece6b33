//! ringtap: a network forwarder for rootless containers.
//!
//! An ordinary user cannot create a network device on the host. ringtap gives a network to a namespace
//! that such a user owns: it opens a TAP device inside, reads the Ethernet frames that the *guest*'s
//! kernel sends, and carries the conversations in them to the outside with ordinary sockets of the
//! *host*; and those that come from outside to forwarded ports, into it. This page is the architecture; each module's
//! own page has its theory of operation.
//!
//! # Bird's-eye view
//!
//! ```text
//!            guest namespace                |                 host namespace
//!  app -> guest's kernel -> tap0, queue 0 --|--> worker 0: ring, arena, stack --> sockets --> world
//!                               \  queue 1 --|--> worker 1: ring, arena, stack --> sockets --> world
//!                                           |       ^ requests   | notices
//!                                           |       |            v
//!                                           |    control: signals, lifetime, resolvers, port forwards, API socket
//!                                           |       | link
//!                                           |    keeper: outside of the sandbox, removes what was made
//! ```
//!
//! Three kinds of code, in three places:
//!
//! * **Pure** ([`frame`], [`flow`], [`stack`]): what the bytes mean and what to do about them. Frames and
//!   [events](flow::Event) go in, [actions](flow::Action) come out, time is an argument. It runs in a test
//!   without root and without a kernel, and a seed replays it byte for byte.
//! * **Worker** ([`worker`]): the only code on the data path that talks to the kernel: one thread, one
//!   io_uring, one TAP queue (or a part in the only one). It turns actions into submission entries and completions into events. There
//!   is one for each core. (A guest that is a program behind a [socket of packets](boot::bess) has one.)
//! * **Boot and control** ([`boot`], [`control`]): before and beside the data path. They may block,
//!   allocate, and fail with context. Control and worker speak by a closed set of
//!   [requests](worker::Request) and [notices](worker::Notice), and by nothing else.
//!
//! # A packet's walk
//!
//! The order of the modules below is the order in which a frame meets them.
//!
//! *Guest to host.* The multishot read of the TAP completes with a [slot](arena::Slot), filled by the kernel.
//! [`frame::parse`] checks every length once. [`stack::Stack::handle_frame`] finds the flow by hash ([`flow::table`])
//! and hands it the slot with its range cut down to the payload. If there is none, it asks [`stack::policy`] whether
//! this conversation may be, and begins it. (A datagram's mapping has many peers: policy is asked for each datagram
//! that does not answer one from outside.) A TCP flow ([`flow::tcp`]) checks sequence numbers and answers with
//! [`flow::Action::TcpSend`]: the kernel takes the payload from the very slot it was read into.
//! What it has taken is acknowledged to the guest, once per flow and turn.
//!
//! *Host to guest.* A receive is submitted only for what the guest's window has room for. It lands in a slot,
//! behind headroom; [`frame::build`] writes TCP, IP, Ethernet and virtio headers in front, and one write
//! puts up to 64 KiB into the guest's kernel, which cuts it into segments (or does not bother).
//!
//! *From outside.* [`control::forwards`] binds the sockets of a forwarded port and gives them to workers. A listening one is
//! a multishot accept: [`stack::Stack::handle_accepted`] makes a flow of a connection that came, finds the guest's MAC, and
//! sends the SYN in the peer's name; once the guest has agreed, the flow is one like any other. A socket of datagrams is a
//! flow by itself ([`stack::bound`]): whoever sends to it is admitted to the mapping of the guest's endpoint
//! ([`flow::forward`]), and answers leave by it.
//!
//! *Between workers.* The guest's kernel sends the frames of a flow to the queue on which its worker answers, so a frame
//! arrives where its flow is. One that does not is looked up in the [directory](stack::directory), copied into the
//! [inbox](worker::team) of the flow's worker, and taken there as if it had come by that one's queue. New connections, of
//! either direction, go the same way to a worker that has fewer.
//!
//! # When the worst has happened
//!
//! Somebody has taken the process over by the bytes that it reads. What he finds, one wall behind the other:
//!
//! * no files but a few to read, no capabilities but that of binding low ports, no descriptors that the caller forgot,
//!   and no core dump: [`boot::sandbox`];
//! * no system calls but those that forwarding needs, any other is the end: [`boot::seccomp`];
//! * rings, which no filter looks into, that can do what a worker does and no more: `worker/ring.rs`;
//! * outside, a [keeper](boot::keeper) that can be asked for nothing but its own end.
//!
//! The first two are the operator's choice, and the default of ringtap's own commands.
//!
//! # Why it is fast
//!
//! * The **virtio header** with all offloads: the guest's kernel hands over and takes segments of up to
//!   64 KiB whatever the MTU, and nobody on this machine computes a TCP checksum.
//! * **No payload byte is touched** in user space on a flowing TCP stream; the core's types see headers.
//! * **One `io_uring_enter` per turn** submits everything and waits for anything.
//! * **A thread per core** that shares nothing while frames arrive where their flows are: no lock, no line of cache.
//! * **A small working set**: few buffers, taken last-in first-out, so they stay in the cache.
//! * **Nothing is dropped that a window let in**: a slow host closes the window, and no timer of the guest fires.
//!
//! # Invariants, most of them absences
//!
//! * Nothing in the pure modules holds a descriptor, reads a clock, allocates per packet, or is unsafe.
//! * A slot is a value with one holder: the kernel (in a table of operations in flight), the core, or
//!   the arena. It is never an index that two could hold.
//! * Every queue, table and pool has a bound in [`limits`]. Overload is a counted, named
//!   [drop](stats::Drop), never growth and never a stall of other flows.
//! * Nothing a guest or a remote peer sends panics. Our own broken invariants may.
//! * The data path logs nothing.
//! * There is no global state. A worker owns its flows, and no flow has two owners; what workers share (the directory,
//!   inboxes) is changed when a flow starts or ends and when a frame comes by another's queue, never for one that is in its place.
//! * `unsafe` lives in few files, listed in `tests/tidy`.
#![warn(rustdoc::broken_intra_doc_links)]
// The pages are for those who work on the code: `cargo doc --document-private-items` has what they link to.
#![allow(rustdoc::private_intra_doc_links)]

pub mod limits;
pub mod output;
pub mod config;
pub mod time;
pub mod stats;
pub mod cli;
pub mod boot;
pub mod arena;
pub mod frame;
pub mod stack;
pub mod flow;
pub mod worker;
pub mod control;
pub mod doctor;
