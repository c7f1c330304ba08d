//! Runs library code on hostile input: its panics become errors and stay off the terminal, and it may not take for ever.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

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

/// Stack of a worker in bytes. Pages become memory when they are used.
const DEEP_STACK: usize = 512 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// Workers that wait for a job: starting a thread for each would take longer than most jobs do.
static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());

/// [`catch`] on a thread with a large stack, for code that goes as deep as its input says; gives up after `patience`.
///
/// A thread cannot be stopped from outside: after giving up it runs on until it or the process ends. So the caller must
/// treat this failure as final and not try again.
pub fn confine<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let worker = worker().map_err(|error| format!("no thread can be started for it: {error}"))?;
    let (sender, receiver) = mpsc::sync_channel(1);
    let job = move || {
        // The receiver is gone if it gave up; nobody is left to tell then.
        let _ = sender.send(catch(work).and_then(|result| result));
    };
    worker.send(Box::new(job)).map_err(|_| "its thread has ended".to_string())?;
    match receiver.recv_timeout(patience) {
        Ok(result) => {
            idle().push(worker);
            result
        }
        Err(_) => Err(format!("it is not done after {} s", patience.as_secs())),
    }
}

fn idle() -> MutexGuard<'static, Vec<Sender<Job>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn worker() -> std::io::Result<Sender<Job>> {
    if let Some(worker) = idle().pop() {
        return Ok(worker);
    }
    let (sender, jobs) = mpsc::channel::<Job>();
    std::thread::Builder::new().stack_size(DEEP_STACK).spawn(move || jobs.into_iter().for_each(|job| job()))?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors_and_endless_work_is_given_up() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(catch(|| -> u8 { panic!("number {}", 8) }), Err("number 8".into()));
        assert_eq!(confine(Duration::from_secs(60), || Ok(7)), Ok(7));
        assert_eq!(confine(Duration::from_secs(60), || -> Result<u8, String> { panic!("no") }), Err("no".into()));
        let (keep, wait) = mpsc::channel::<u8>();
        let waiting = move || wait.recv().map_err(|error| error.to_string());
        assert_eq!(confine(Duration::from_millis(20), waiting), Err("it is not done after 0 s".into()));
        drop(keep);
    }

    /// Deeper than any ordinary stack: 200,000 frames of at least a kilobyte.
    #[test]
    fn confined_work_may_go_deep() {
        fn deep(level: usize) -> u64 {
            let frame = std::hint::black_box([level as u64; 128]);
            if level == 0 { frame[0] } else { deep(level - 1) + frame[127].min(1) }
        }
        assert_eq!(confine(Duration::from_secs(60), || Ok(deep(200_000))), Ok(200_000));
    }
}
