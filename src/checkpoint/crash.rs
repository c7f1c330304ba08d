//! Crash injection: a save is stopped dead after each of its steps in turn, and what is left must be right.

use std::io::{Error as IoError, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use super::write::save_watched;
use super::{Snapshot, Tensor, latest, list, load, save, verify};
use crate::error::Error;
use crate::fingerprint::Fingerprint;

/// A tensor of two pieces, a short one and an empty one.
fn snapshot(step: u64) -> Snapshot {
    let floats = (0..300_000u32).map(|i| i as f32 * 0.25 + step as f32).collect();
    Snapshot {
        step,
        config_hash: Fingerprint::of_lists(&[&[7]]),
        state: serde_json::json!({ "step": step, "lr": 0.1 }),
        tensors: vec![
            Tensor::new("weights", floats),
            Tensor::new("none", Vec::new()),
            Tensor::new("last", vec![step as f32, -0.0]),
        ],
    }
}

/// Saves and dies after the `last`-th step, with no chance to clean up. Returns whether it got to the end.
fn save_until(root: &Path, snapshot: &Snapshot, keep: usize, last: usize) -> bool {
    struct Crash;
    let mut count = 0;
    let saved = catch_unwind(AssertUnwindSafe(|| {
        save_watched(root, snapshot, keep, &mut |_| {
            count += 1;
            // Not `panic!`: it would print.
            if count > last { resume_unwind(Box::new(Crash)) } else { Ok(()) }
        })
    }));
    match saved {
        Ok(result) => {
            result.unwrap();
            true
        }
        Err(payload) => {
            assert!(payload.is::<Crash>());
            false
        }
    }
}

/// What `latest` finds, checked to be one of `expected`, every bit of it.
fn found(root: &Path, expected: &[Snapshot]) -> u64 {
    let dir = latest(root).unwrap().expect("a checkpoint must be left");
    assert!(verify(&dir).unwrap().is_intact());
    let snapshot = load(&dir).unwrap();
    assert!(expected.contains(&snapshot), "a wrong checkpoint of step {} was loaded", snapshot.step);
    snapshot.step
}

/// Wherever a save is stopped, the old checkpoint or the new one is found and right, and the next save succeeds.
#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new_checkpoint() {
    for keep in [1, 2] {
        crash_at_every_step(keep);
    }
}

fn crash_at_every_step(keep: usize) {
    let first = snapshot(1);
    let old = snapshot(2);
    let new = snapshot(3);
    let next = snapshot(4);
    let mut steps_found = Vec::new();
    for last in 0.. {
        let root = tempfile::tempdir().unwrap();
        save(root.path(), &first, keep).unwrap();
        save(root.path(), &old, keep).unwrap();
        let finished = save_until(root.path(), &new, keep, last);
        steps_found.push(found(root.path(), &[old.clone(), new.clone()]));
        save(root.path(), &next, keep).unwrap();
        let left = list(root.path()).unwrap();
        assert_eq!(left.last().unwrap().step, 4);
        assert_eq!(left.len(), keep, "after a crash at step {last}: {left:?}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), keep, "leftovers of a crash at step {last}");
        assert_eq!(load(&latest(root.path()).unwrap().unwrap()).unwrap(), next);
        if finished {
            break;
        }
    }
    // Old at first, new from some step on, never back; and the steps were many.
    assert!(steps_found.is_sorted() && steps_found.first() == Some(&2) && steps_found.last() == Some(&3));
    assert!(steps_found.len() > 15, "only {} steps", steps_found.len());
}

/// The same where a checkpoint of the same step is replaced, even the only one.
#[test]
fn a_crash_while_replacing_leaves_one_of_the_two() {
    let old = snapshot(5);
    let new = Snapshot { config_hash: Fingerprint::of_lists(&[&[8]]), ..snapshot(5) };
    let mut hashes = Vec::new();
    for last in 0.. {
        let root = tempfile::tempdir().unwrap();
        save(root.path(), &old, 1).unwrap();
        let finished = save_until(root.path(), &new, 1, last);
        found(root.path(), &[old.clone(), new.clone()]);
        hashes.push(load(&latest(root.path()).unwrap().unwrap()).unwrap().config_hash);
        save(root.path(), &new, 1).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1, "leftovers of a crash at step {last}");
        assert_eq!(load(&latest(root.path()).unwrap().unwrap()).unwrap(), new);
        if finished {
            break;
        }
    }
    assert!(hashes.first() == Some(&old.config_hash) && hashes.last() == Some(&new.config_hash));
    assert!(hashes.is_sorted_by_key(|hash| *hash == new.config_hash), "the old one came back: {hashes:?}");
}

/// A first save that is stopped leaves nothing that could be taken for a checkpoint.
#[test]
fn a_crash_of_the_first_save_leaves_none_or_all() {
    for last in 0.. {
        let root = tempfile::tempdir().unwrap();
        let finished = save_until(root.path(), &snapshot(1), 2, last);
        if let Some(dir) = latest(root.path()).unwrap() {
            assert_eq!(load(&dir).unwrap(), snapshot(1));
        }
        if finished {
            assert!(latest(root.path()).unwrap().is_some());
            break;
        }
    }
}

/// A disk that is full at any step is an error that says where and how much is missing, leaves the old checkpoint, and
/// takes no space away. Once the new checkpoint has its name, only the deletion of old ones can fail: a warning.
#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let old = snapshot(2);
    let new = snapshot(3);
    let mut failures = 0;
    for fail_at in 1.. {
        let root = tempfile::tempdir().unwrap();
        save(root.path(), &old, 1).unwrap();
        let mut count = 0;
        let mut failed_in = String::new();
        let result = save_watched(root.path(), &new, 1, &mut |what| {
            count += 1;
            if count != fail_at {
                return Ok(());
            }
            failed_in = what.to_owned();
            Err(IoError::from(ErrorKind::StorageFull))
        });
        found(root.path(), &[old.clone(), new.clone()]);
        if failed_in.is_empty() {
            break;
        }
        match failed_in.as_str() {
            "moved an old one away" | "deleted an old one" => {
                result.unwrap();
            }
            "renamed the directory" | "flushed the root" => assert!(matches!(result, Err(Error::Io { .. }))),
            "moved the replaced one aside" => {
                let message = result.unwrap_err().to_string();
                assert!(message.contains("step-00000003.tmp"), "{message}");
                assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
            }
            _ => {
                failures += 1;
                let message = result.unwrap_err().to_string();
                assert!(message.contains("step-00000003.tmp") && message.contains("bytes"), "{message}");
                assert!(!message.contains('\n'));
                assert_eq!(load(&latest(root.path()).unwrap().unwrap()).unwrap(), old);
                assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
            }
        }
    }
    assert!(failures > 10, "only {failures} steps failed");
}
