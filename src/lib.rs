//! ringtap: a network forwarder for rootless containers.
pub mod arena;
pub mod boot;
pub mod cli;
pub mod config;
pub mod control;
pub mod doctor;
pub mod flow;
pub mod frame;
pub mod limits;
pub mod stack;
pub mod stats;
pub mod time;
pub mod worker;
