//! ringtap: a network forwarder for rootless containers.
pub mod arena;
pub mod config;
pub mod flow;
pub mod frame;
pub mod limits;
pub mod stack;
pub mod stats;
pub mod time;
pub mod worker;
