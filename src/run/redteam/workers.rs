//! Independent attacks side by side: each worker has weights, an evaluator and a share of the threads of its own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use super::{Attacked, Attacker};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::redteam::suite::Attack;
use crate::redteam::{Cost, Scores, Target};
use crate::run::signals::StopFlag;

/// What workers tell.
pub(super) enum Message {
    /// A step was taken.
    Step {
        /// Its loss.
        loss: f64,
    },
    /// An attack is over.
    Over {
        /// Its index in the list.
        index: usize,
        /// What it came to, or why it failed.
        outcome: Result<Attacked>,
        /// What its training cost until then.
        spent: Cost,
    },
}

/// What the attacks of a list have in common.
pub(super) struct Pool<'a, B: Backend> {
    pub target: &'a Target<B>,
    pub before: &'a Scores,
    pub jobs: usize,
    /// Bytes that all workers may use together.
    pub memory: Option<u64>,
    pub stop: &'a StopFlag,
}

impl<B: Backend> Pool<'_, B> {
    /// Runs all `attacks`; `handle` gets every message, in this thread. An error of it ends the run, as do errors that are
    /// not the attack's own.
    pub(super) fn run(&self, attacks: &[Attack], handle: &mut dyn FnMut(Message) -> Result<()>) -> Result<()> {
        let next = AtomicUsize::new(0);
        let jobs = self.jobs.min(attacks.len());
        if jobs <= 1 {
            return self.work(attacks, &next, handle);
        }
        let halt = AtomicBool::new(false);
        let mut ended = Ok(());
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            for _ in 0..jobs {
                let sender = sender.clone();
                let next = &next;
                let halt = &halt;
                scope.spawn(move || {
                    let done = self.work_apart(attacks, next, halt, &sender);
                    if let Err(error) = done {
                        // First in the channel, so that it comes before what it does to the others. A receiver that is gone
                        // has an error of its own.
                        let _ = sender.send(Err(error));
                        halt.store(true, Ordering::Relaxed);
                    }
                });
            }
            drop(sender);
            for message in receiver {
                let handled = message.and_then(&mut *handle);
                if handled.is_err() {
                    halt.store(true, Ordering::Relaxed);
                }
                // The first error says what happened; later ones follow from it.
                if ended.is_ok() {
                    ended = handled;
                }
            }
        });
        ended
    }

    /// One worker beside others, on its own threads.
    fn work_apart(
        &self,
        attacks: &[Attack],
        next: &AtomicUsize,
        halt: &AtomicBool,
        sender: &Sender<Result<Message>>,
    ) -> Result<()> {
        let threads = (rayon::current_num_threads() / self.jobs).max(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(Error::system("start threads"))?;
        pool.install(|| {
            self.work(attacks, next, &mut |message| {
                if halt.load(Ordering::Relaxed) || sender.send(Ok(message)).is_err() {
                    return Err(interrupted());
                }
                Ok(())
            })
        })
    }

    /// Fails for an attack that would take more than all of the memory by itself.
    fn ensure_fits(&self, attack: &Attack) -> Result<()> {
        let needed = self.target.bytes(attack)?;
        match self.memory {
            Some(available) if needed > available => Err(Error::Memory {
                what: format!("the attack {}", attack.id),
                needed,
                available,
                remedy: "lower its batch or rank".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Takes attacks from the list until there is none.
    fn work(&self, attacks: &[Attack], next: &AtomicUsize, tell: &mut dyn FnMut(Message) -> Result<()>) -> Result<()> {
        let mut attacker = None;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(attack) = attacks.get(index) else { return Ok(()) };
            let attacker = match &mut attacker {
                Some(attacker) => attacker,
                empty => empty.insert(Attacker::new(self.target, self.before)?),
            };
            let fits = self.ensure_fits(attack);
            let mut spent = Cost::default();
            let outcome = fits.and_then(|()| {
                let outcome = attacker.run(attack, &mut |loss| {
                    if self.stop.requested() {
                        return Err(interrupted());
                    }
                    loss.map_or(Ok(()), |loss| tell(Message::Step { loss }))
                });
                spent = attacker.spent();
                outcome
            });
            match outcome {
                Err(error) if ends_the_run(&error) => return Err(error),
                outcome => tell(Message::Over { index, outcome, spent })?,
            }
        }
    }
}

pub(super) fn interrupted() -> Error {
    let remedy = "run it again with `resume` to go on with the attacks that are not finished".into();
    Error::Interrupted { at: "during an attack".into(), remedy }
}

/// Whether an error is not the attack's own, so that the next attack would meet it too.
fn ends_the_run(error: &Error) -> bool {
    match error {
        Error::NonFinite { .. } | Error::Input { .. } | Error::Config { .. } | Error::Memory { .. } => false,
        Error::Interrupted { .. }
        | Error::Io { .. }
        | Error::System { .. }
        | Error::Encode { .. }
        | Error::Shape { .. }
        | Error::NoDevice(_)
        | Error::Device(_)
        | Error::Defect(_) => true,
    }
}
