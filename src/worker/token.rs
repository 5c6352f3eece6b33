//! `user_data` as a type: which operation a completion belongs to.

use crate::flow::FlowId;

/// Names an operation in flight. Packs into the 64 bits of `user_data`: 8 of kind, 24 of index, 32 of
/// generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The multishot read of the TAP.
    TapRead,
    /// A write to the TAP; the index into the writes in flight.
    TapWrite(u32),
    /// The poll for room in a socket of packets.
    TapRoom,
    /// The eventfd of the mailbox.
    Wake,
    /// Another worker has handed frames over.
    Frames,
    /// A bell that could not be rung: that of a worker.
    Bell(u32),
    /// Multishot accept; the index into the listening sockets.
    Accept(u32),
    /// A cancellation, whose own result says nothing.
    Cancel,
    /// A part of a datagram send.
    DgramSend {
        /// Index into the datagrams in flight.
        index: u32,
        /// Which part.
        part: u32,
    },
    /// An operation on a flow's socket.
    Sock(Op, FlowId),
}

impl Token {
    /// Whether somebody else has done something; otherwise it is the end of what we have sent ourselves.
    pub(super) fn is_news(self) -> bool {
        !matches!(
            self,
            Self::TapWrite(_)
                | Self::Cancel
                | Self::DgramSend { .. }
                | Self::Sock(Op::Connect | Op::Send, _)
        )
    }
}

/// Operations on a flow's socket. At most one of each is in flight per socket; the value is its bit in
/// the socket's set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    /// `connect`.
    Connect = 1,
    /// `send` or `sendmsg` on TCP.
    Send = 2,
    /// `recv` on TCP.
    Recv = 4,
    /// Poll for room.
    PollOut = 8,
    /// Poll for errors.
    PollError = 16,
    /// Multishot `recvmsg` of datagrams.
    Data = 32,
    /// Multishot `recvmsg` of the error queue.
    ErrQueue = 64,
}

impl Op {
    /// All of them.
    pub(super) const ALL: [Self; 7] = [
        Self::Connect,
        Self::Send,
        Self::Recv,
        Self::PollOut,
        Self::PollError,
        Self::Data,
        Self::ErrQueue,
    ];
}

const TAP_READ: u8 = 128;
const TAP_WRITE: u8 = 129;
const WAKE: u8 = 130;
const CANCEL: u8 = 131;
const DGRAM_SEND: u8 = 132;
const FRAMES: u8 = 133;
const BELL: u8 = 134;
const ACCEPT: u8 = 135;
const TAP_ROOM: u8 = 136;

// The index of a flow fits its 24 bits.
const _: () = assert!(crate::limits::FLOWS_MAX <= 1 << 24);

impl Token {
    /// As `user_data`.
    pub(super) fn pack(self) -> u64 {
        let (kind, index, generation) = match self {
            Self::TapRead => (TAP_READ, 0, 0),
            Self::TapWrite(index) => (TAP_WRITE, index, 0),
            Self::TapRoom => (TAP_ROOM, 0, 0),
            Self::Wake => (WAKE, 0, 0),
            Self::Cancel => (CANCEL, 0, 0),
            Self::Frames => (FRAMES, 0, 0),
            Self::Bell(worker) => (BELL, worker, 0),
            Self::Accept(index) => (ACCEPT, index, 0),
            Self::DgramSend { index, part } => (DGRAM_SEND, index, part),
            Self::Sock(op, id) => (op as u8, id.index, id.generation),
        };
        u64::from(kind) << 56 | u64::from(index & 0xff_ffff) << 32 | u64::from(generation)
    }

    /// From `user_data`; `None` for a value that [`Token::pack`] never made.
    pub(super) fn unpack(data: u64) -> Option<Self> {
        let index = (data >> 32) as u32 & 0xff_ffff;
        let id = FlowId { index, generation: data as u32 };
        Some(match (data >> 56) as u8 {
            TAP_READ => Self::TapRead,
            TAP_WRITE => Self::TapWrite(index),
            TAP_ROOM => Self::TapRoom,
            WAKE => Self::Wake,
            CANCEL => Self::Cancel,
            FRAMES => Self::Frames,
            BELL => Self::Bell(index),
            ACCEPT => Self::Accept(index),
            DGRAM_SEND => Self::DgramSend { index, part: data as u32 },
            1 => Self::Sock(Op::Connect, id),
            2 => Self::Sock(Op::Send, id),
            4 => Self::Sock(Op::Recv, id),
            8 => Self::Sock(Op::PollOut, id),
            16 => Self::Sock(Op::PollError, id),
            32 => Self::Sock(Op::Data, id),
            64 => Self::Sock(Op::ErrQueue, id),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let id = FlowId { index: 0xab_cdef, generation: 0xdead_beef };
        let mut tokens: Vec<_> = Op::ALL.map(|op| Token::Sock(op, id)).into();
        tokens.extend([Token::TapRead, Token::TapWrite(7), Token::Wake, Token::Cancel]);
        tokens.extend([Token::Frames, Token::Bell(7), Token::Accept(9)]);
        tokens.push(Token::DgramSend { index: 0xff_ffff, part: 3 });
        for token in tokens {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(0), None);
    }
}
