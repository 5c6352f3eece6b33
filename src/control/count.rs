//! The counters of all workers together.

use std::sync::mpsc;
use std::time::Duration;

use crate::stats::Stats;
use crate::worker::{Handle, Request};

/// A worker answers within its current turn; one that has ended never does.
const PATIENCE: Duration = Duration::from_millis(200);

/// Asks all workers, and yields the sum of what they have done and how many have answered. Blocks, for a moment.
pub fn totals(workers: &[Handle]) -> (Stats, usize) {
    let (reply, answers) = mpsc::channel();
    for worker in workers {
        worker.request(Request::Stats(reply.clone()));
    }
    let mut sum = Stats::default();
    let mut count = 0;
    while count < workers.len()
        && let Ok(stats) = answers.recv_timeout(PATIENCE)
    {
        sum.add(&stats);
        count += 1;
    }
    (sum, count)
}
