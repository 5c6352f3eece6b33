//! How a worker ends.

use super::*;

/// What control hears of a worker that does this.
fn last_word(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Option<Notice> {
    let (notices, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let word = LastWord { notices, me: 3, result: None };
    let _ = thread::spawn(move || word.after(work)).join();
    heard.blocking_recv()
}

#[test]
fn however_a_worker_ends_it_says_so() {
    assert!(matches!(last_word(|| Ok(())), Some(Notice::Ended(3, Ok(())))));
    let Some(Notice::Ended(3, Err(e))) = last_word(|| Err(io::Error::other("gone"))) else {
        panic!("no word of an error");
    };
    assert_eq!(e.to_string(), "gone");
    let Some(Notice::Ended(3, Err(e))) = last_word(|| panic!("as a test")) else {
        panic!("no word of a panic");
    };
    assert!(e.to_string().contains("panic"), "{e}");
}
