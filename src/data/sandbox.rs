//! Runs library code on hostile input so that its panics become errors, and stay off the terminal.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work`; a panic in it becomes `Err` with what it said. The panic hook is left as it is for all other code.
///
/// `work` must not leave anything shared half-changed when it panics.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    silence_while_quiet();
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.map_err(|payload| said(payload.as_ref()))
}

/// Wraps the panic hook once, so that it passes over panics of a thread that is in [`catch`].
fn silence_while_quiet() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |information| {
            if !QUIET.get() {
                before(information);
            }
        }));
    });
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".into())
}

/// Stack of [`catch_deep`] in bytes. Only what is used of it becomes memory.
const DEEP_STACK: usize = 512 << 20;

/// [`catch`] on a thread with a large stack, for code that goes as deep as its input says.
pub fn catch_deep<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(DEEP_STACK).spawn_scoped(scope, || catch(work));
        let joined = thread.map_err(|error| format!("no thread can be started: {error}"))?.join();
        joined.unwrap_or_else(|_| Err("its thread ended early".into()))
    })
}
