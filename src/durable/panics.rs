//! Catches panics of a library: the caller gets the message, and it is not printed.
//!
//! sled panics on our threads and on its own where it has no error to return. A panic on our thread becomes an error of
//! the call ([`caught`]). Of panics on sled's threads only the first is logged; the next call finds what they broke.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Limit for the message of a panic, counted in characters.
const MAX_MESSAGE_CHARACTERS: usize = 300;

thread_local! {
    /// How many calls of this thread are inside [`caught`].
    static INSIDE: Cell<u32> = const { Cell::new(0) };
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `call`. A panic becomes an error with its message and source location.
pub fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    watch();
    INSIDE.set(INSIDE.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    INSIDE.set(INSIDE.get() - 1);
    outcome.map_err(|_| MESSAGE.take().unwrap_or_else(|| "no message".into()))
}

/// Installs a panic hook in front of the existing one, once per process.
fn watch() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if INSIDE.get() > 0 {
                MESSAGE.set(Some(said(panic)));
            } else if std::thread::current().name().is_some_and(|name| name.starts_with("sled")) {
                static TOLD: AtomicBool = AtomicBool::new(false);
                if !TOLD.swap(true, Ordering::SeqCst) {
                    log::warn!(event = "sled_panicked", cause = said(panic).as_str(); "a thread of sled panicked; more of these are not logged");
                }
            } else {
                before(panic);
            }
        }));
    });
}

fn said(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let text: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE_CHARACTERS).collect();
    match panic.location() {
        Some(at) => format!("{text} ({}:{})", at.file().rsplit('/').next().unwrap_or_default(), at.line()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_what_it_said() {
        let said = caught(|| -> u32 { panic!("the log is\nbroken: {}", 7) }).unwrap_err();
        assert!(said.starts_with("the log is broken: 7 (panics.rs:"), "{said}");
        assert_eq!(caught(|| 1), Ok(1));
        // `caught` inside `caught`.
        assert_eq!(caught(|| caught(|| -> u32 { panic!("inner") }).is_err()), Ok(true));
    }
}
