//! Checkpoints from outside: what is saved comes back bit for bit, the right ones are kept, and no damaged or hostile
//! directory is loaded, makes the reader panic, or gets an answer longer than a line.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde_json::{Value, json};
use temper::Error;
use temper::checkpoint::{Snapshot, Tensor, latest, list, load, save, verify};
use temper::fingerprint::Fingerprint;

fn config_hash() -> Fingerprint {
    Fingerprint::of("a configuration").unwrap()
}

fn snapshot(step: u64) -> Snapshot {
    let odd = [0.0, -0.0, f32::MIN_POSITIVE / 3.0, f32::MAX, f32::INFINITY, step as f32];
    Snapshot {
        step,
        config_hash: config_hash(),
        state: json!({"optimizer": {"step": step, "accumulated": 0.1 + 0.2, "lr_max": 2e-5}, "cursors": [1, 2, u64::MAX]}),
        tensors: vec![
            Tensor::new("model.weights", odd.to_vec()),
            Tensor::new("empty", Vec::new()),
            Tensor::new("order", vec![3.0, 1.0, 2.0, f32::MIN]),
        ],
    }
}

/// A root with checkpoints of steps 1 (good) and 2, and the directory of step 2.
fn two() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    save(root.path(), &snapshot(1), 2).unwrap();
    let dir = save(root.path(), &snapshot(2), 2).unwrap();
    (root, dir)
}

/// The checkpoint `dir` is refused, by every function and in one line; returns all that `verify` says.
fn refused(dir: &Path) -> String {
    let error = load(dir).expect_err("a bad checkpoint was loaded");
    assert!(matches!(error, Error::Input { .. } | Error::Io { .. }), "{error:?}");
    let problems = verify(dir).unwrap().problems;
    assert_eq!(problems.first(), Some(&error.to_string()));
    for problem in &problems {
        assert!(!problem.contains('\n') && problem.len() < 800, "{problem}");
    }
    problems.join("\n")
}

/// As [`refused`], and `latest` falls back to step 1.
fn skipped(root: &tempfile::TempDir, dir: &Path) -> String {
    let problems = refused(dir);
    assert_eq!(load(&latest(root.path()).unwrap().unwrap()).unwrap(), snapshot(1));
    problems
}

#[test]
fn every_bit_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let nans = [0x7fc0_0001u32, 0xffc0_0000, 0x7f80_0001, 0x8000_0000, 1];
    let long: Vec<f32> = (0..600_001).map(|i| (i as f32).sin()).collect();
    let mut saved = snapshot(12);
    saved.tensors.push(Tensor::new("nan", nans.map(f32::from_bits).to_vec()));
    saved.tensors.push(Tensor::new("long", long));
    let dir = save(&root.path().join("run/checkpoints"), &saved, 1).unwrap();
    assert_eq!(dir, root.path().join("run/checkpoints/step-00000012"));
    let mut loaded = load(&dir).unwrap();
    let found = loaded.take(&dir, "nan", nans.len()).unwrap();
    assert_eq!(found.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), nans);
    saved.take(&dir, "nan", nans.len()).unwrap();
    // Bits again, since -0.0 == 0.0.
    for (a, b) in loaded.tensors.iter().zip(&saved.tensors) {
        assert!(a.values.iter().map(|x| x.to_bits()).eq(b.values.iter().map(|x| x.to_bits())));
    }
    assert_eq!(loaded, saved);
    let verification = verify(&dir).unwrap();
    assert!(verification.is_intact() && verification.step == Some(12) && verification.bytes > 2_400_000);
}

/// The tensors are an ordinary safetensors file.
#[test]
fn tensors_are_a_safetensors_file() {
    let (_root, dir) = two();
    let bytes = fs::read(dir.join("tensors.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 3);
    let order = file.tensor("order").unwrap();
    assert_eq!((order.dtype(), order.shape()), (safetensors::Dtype::F32, &[4][..]));
    assert_eq!(order.data(), [3.0, 1.0, 2.0, f32::MIN].map(f32::to_le_bytes).concat());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any finite f64 of the state comes back with its bits: resuming must not change an optimizer's scalars.
    #[test]
    fn numbers_of_the_state_come_back(bits in prop::collection::vec(any::<u64>(), 50)) {
        let numbers: Vec<f64> = bits.into_iter().map(f64::from_bits).filter(|x| x.is_finite()).collect();
        let root = tempfile::tempdir().unwrap();
        let saved = Snapshot { state: json!(numbers), tensors: Vec::new(), ..snapshot(0) };
        let loaded = load(&save(root.path(), &saved, 1).unwrap()).unwrap();
        let found: Vec<f64> = serde_json::from_value(loaded.state).unwrap();
        let bits = |numbers: &[f64]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&found), bits(&numbers));
    }
}

/// The newest are kept; what is newer than the one written, and what is none of ours, stays.
#[test]
fn old_checkpoints_go_and_others_stay() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("step-1")).unwrap();
    fs::create_dir(root.path().join("notes")).unwrap();
    let steps = || list(root.path()).unwrap().iter().map(|info| info.step).collect::<Vec<_>>();
    for step in [10, 20, 30, 40] {
        save(root.path(), &snapshot(step), 2).unwrap();
    }
    assert_eq!(steps(), [30, 40]);
    // A run that went on from an older point than the newest.
    save(root.path(), &snapshot(35), 1).unwrap();
    assert_eq!(steps(), [35, 40]);
    save(root.path(), &snapshot(123_456_789), 0).unwrap();
    assert_eq!(steps(), [123_456_789]);
    assert!(root.path().join("step-1").is_dir() && root.path().join("notes").is_dir());
    let info = &list(root.path()).unwrap()[0];
    assert_eq!((info.config_hash, info.tensors), (config_hash(), 3));
    assert_eq!(info.temper_version, env!("CARGO_PKG_VERSION"));
}

#[test]
fn there_may_be_none() {
    let root = tempfile::tempdir().unwrap();
    let absent = root.path().join("checkpoints");
    assert_eq!(latest(&absent).unwrap(), None);
    assert_eq!(list(&absent).unwrap(), []);
    assert!(load(&absent).is_err() && verify(&absent).is_err());
    assert_eq!(latest(root.path()).unwrap(), None);
}

/// One bit flipped anywhere in any file is found, and the file or tensor that it is in is named.
#[test]
fn every_flipped_bit_is_found() {
    let (_root, dir) = two();
    for name in ["manifest.json", "state.json", "tensors.safetensors"] {
        let path = dir.join(name);
        let good = fs::read(&path).unwrap();
        for bit in 0..8 * good.len() {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bad).unwrap();
            let problems = refused(&dir);
            assert!(problems.contains(name), "bit {bit}: {problems}");
            // The last 16 bytes are the tensor `order`, the 24 before them `model.weights`.
            let expected = match good.len() - bit / 8 {
                _ if name != "tensors.safetensors" => continue,
                1..=16 => "`order`",
                17..=40 => "`model.weights`",
                _ => "header",
            };
            assert!(problems.contains(expected), "bit {bit}: {problems}");
            assert_eq!(problems.lines().count(), 1);
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(verify(&dir).unwrap().is_intact());
}

/// A file cut at any length, or with a byte more, is refused.
#[test]
fn every_wrong_length_is_found() {
    let (root, dir) = two();
    for name in ["manifest.json", "state.json", "tensors.safetensors"] {
        let path = dir.join(name);
        let good = fs::read(&path).unwrap();
        for len in 0..good.len() {
            fs::write(&path, &good[..len]).unwrap();
            assert!(refused(&dir).contains(name));
        }
        fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert!(skipped(&root, &dir).contains(name));
        fs::write(&path, &good).unwrap();
    }
}

/// Even bytes that mean the same are found to be other bytes.
#[test]
fn a_rewritten_header_is_found() {
    let (root, dir) = two();
    let path = dir.join("tensors.safetensors");
    let good = fs::read(&path).unwrap();
    let from = &br#""dtype":"F32","shape":[4]"#[..];
    let to = &br#""shape":[4],"dtype":"F32""#[..];
    let at = good.windows(from.len()).position(|window| window == from).unwrap();
    fs::write(&path, [&good[..at], to, &good[at + from.len()..]].concat()).unwrap();
    assert!(skipped(&root, &dir).contains("the file has checksum"));
}

/// Two bad files and two bad tensors are all named at once.
#[test]
fn verify_names_all_that_is_bad() {
    let (_root, dir) = two();
    let mut tensors = fs::read(dir.join("tensors.safetensors")).unwrap();
    let len = tensors.len();
    tensors[len - 1] ^= 1;
    tensors[len - 30] ^= 1;
    fs::write(dir.join("tensors.safetensors"), tensors).unwrap();
    fs::remove_file(dir.join("state.json")).unwrap();
    let problems = verify(&dir).unwrap().problems;
    assert_eq!(problems.len(), 3, "{problems:?}");
    for (problem, name) in problems.iter().zip(["state.json", "`model.weights`", "`order`"]) {
        assert!(problem.contains(name), "{problem}");
    }
}

/// Whatever lies in a file's place, nothing is followed, waited for, or read.
#[test]
fn only_regular_files_are_opened() {
    for name in ["manifest.json", "state.json", "tensors.safetensors"] {
        for kind in ["missing", "directory", "link", "fifo"] {
            let (root, dir) = two();
            let path = dir.join(name);
            let elsewhere = root.path().join("elsewhere");
            fs::rename(&path, &elsewhere).unwrap();
            match kind {
                "directory" => fs::create_dir(&path).unwrap(),
                "link" => std::os::unix::fs::symlink(&elsewhere, &path).unwrap(),
                "fifo" => assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success()),
                _ => {}
            }
            assert!(skipped(&root, &dir).contains(name), "{kind}");
        }
    }
    let (root, dir) = two();
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, "not a directory").unwrap();
    assert_eq!(load(&latest(root.path()).unwrap().unwrap()).unwrap(), snapshot(1));
    save(root.path(), &snapshot(2), 2).unwrap();
    assert_eq!(load(&dir).unwrap(), snapshot(2));
}

/// Writes `text` with `manifest` in it, sealed with a checksum that fits.
fn write_sealed(dir: &Path, manifest: &Value) {
    let crc32c = crc32c::crc32c(&serde_json::to_vec(manifest).unwrap());
    fs::write(dir.join("manifest.json"), json!({"manifest": manifest, "crc32c": crc32c}).to_string()).unwrap();
}

fn manifest(dir: &Path) -> Value {
    let text = fs::read(dir.join("manifest.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["manifest"].take()
}

/// Manifests that an attacker, another version or another run wrote, with checksums that fit.
#[test]
fn hostile_manifests_are_refused() {
    let (root, dir) = two();
    let good = manifest(&dir);
    // The seal of this test is the library's: only then does the rest show anything.
    write_sealed(&dir, &good);
    assert_eq!(load(&dir).unwrap(), snapshot(2));
    let cases: &[(&str, Value, &str)] = &[
        ("/format", json!(1), "older version of temper, this one reads 2"),
        ("/format", json!(3), "newer"),
        ("/format", json!(u64::MAX), "newer"),
        ("/format", json!(0), "format 0"),
        ("/format", json!(-1), "manifest"),
        ("/format", json!("2"), "manifest"),
        ("/format", json!(1.5), "manifest"),
        ("/step", json!(3), "step 3"),
        ("/step", json!(-2), "manifest"),
        ("/step", json!(1e300), "manifest"),
        ("/config_hash", json!("FEED0000000000000000000000000001"), "hexadecimal"),
        ("/config_hash", json!("0xfeed"), "hexadecimal"),
        ("/config_hash", json!("f".repeat(33)), "hexadecimal"),
        ("/config_hash", json!("feed000000000001"), "hexadecimal"),
        ("/config_hash", json!(1), "manifest"),
        ("/files/0/name", json!("../step-00000001/state.json"), ".."),
        ("/files/0/name", json!("/etc/passwd"), "/etc/passwd"),
        ("/files/0/name", json!(""), "names the file"),
        ("/files/0/name", json!("tensors.safetensors"), "names the file"),
        ("/files/1/name", json!("tensors.safetensors\0\n"), "names the file"),
        ("/files/0/name", json!("x".repeat(100_000)), "names the file"),
        ("/files/0/bytes", json!(u64::MAX), "state.json"),
        ("/files/1/bytes", json!(u64::MAX), "tensors.safetensors"),
        ("/files/1/bytes", json!(1u64 << 40), "tensors.safetensors"),
        ("/files/1/bytes", json!(0), "do not fit"),
        ("/files/0/crc32c", json!(1u64 << 32), "manifest"),
        ("/files/0/crc32c", json!(0), "state.json"),
        ("/files", json!([]), "manifest"),
        ("/files", json!([good["files"][0], good["files"][1], good["files"][1]]), "manifest"),
        ("/tensors", json!(null), "manifest"),
        ("/tensors", json!([]), "header"),
        ("/tensors/0/elements", json!(u64::MAX), "do not fit"),
        ("/tensors/0/elements", json!(u64::MAX / 4), "do not fit"),
        ("/tensors/0/elements", json!(5), "header"),
        ("/tensors/1/elements", json!(1), "header"),
        ("/tensors/0/name", json!("order"), "twice"),
        ("/tensors/0/name", json!("a\nb"), "header"),
        ("/tensors/0/crc32c", json!(0), "`model.weights`"),
    ];
    for (place, value, expected) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(place).unwrap() = value.clone();
        write_sealed(&dir, &bad);
        let problems = skipped(&root, &dir);
        assert!(problems.contains(expected), "{place} = {value}: {problems}");
    }
    let mut unknown = good.clone();
    unknown["line\nbreak"] = json!(1);
    write_sealed(&dir, &unknown);
    assert!(skipped(&root, &dir).contains("unknown field"));
    let mut missing = good.clone();
    missing.as_object_mut().unwrap().shift_remove("step");
    write_sealed(&dir, &missing);
    assert!(skipped(&root, &dir).contains("missing field"));
}

/// Files that are no manifest at all.
#[test]
fn what_is_no_manifest_is_refused() {
    let (root, dir) = two();
    let good = String::from_utf8(fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let deep = "[".repeat(1_000_000);
    let twice = good.replacen("\"step\": 2", "\"step\": 2, \"step\": 2", 1);
    let huge = good.replacen("\"step\": 2", &format!("\"step\": {}", "9".repeat(400)), 1);
    let bom = format!("\u{feff}{good}");
    assert!(twice != good && huge != good);
    for text in ["", "\0", "null", "[]", "{}", "{\"manifest\": {}}", &deep, &twice, &huge, &bom] {
        fs::write(dir.join("manifest.json"), text).unwrap();
        assert!(skipped(&root, &dir).contains("manifest.json"));
    }
    fs::write(dir.join("manifest.json"), [0xff, 0xfe, 0x80]).unwrap();
    skipped(&root, &dir);
    // A manifest of the same run's other checkpoint: its checksums are right, for other files.
    fs::copy(root.path().join("step-00000001/manifest.json"), dir.join("manifest.json")).unwrap();
    assert!(skipped(&root, &dir).contains("step 1"));
    // 65 MiB without a byte on the disk.
    fs::File::create(dir.join("manifest.json")).unwrap().set_len(65 << 20).unwrap();
    assert!(skipped(&root, &dir).contains("too many"));
}

/// State and header that are wrong although every checksum fits.
#[test]
fn hostile_files_with_right_checksums_are_refused() {
    let (root, dir) = two();
    let good = manifest(&dir);
    let replace = |index: usize, bytes: &[u8]| {
        let name = good["files"][index]["name"].as_str().unwrap();
        fs::write(dir.join(name), bytes).unwrap();
        let mut bad = good.clone();
        bad["files"][index]["bytes"] = json!(bytes.len());
        bad["files"][index]["crc32c"] = json!(crc32c::crc32c(bytes));
        write_sealed(&dir, &bad);
    };
    let state = fs::read(dir.join("state.json")).unwrap();
    for text in ["", "{", "{} {}", "1e999", &"[".repeat(200)] {
        replace(0, text.as_bytes());
        assert!(skipped(&root, &dir).contains("state.json"));
    }
    fs::write(dir.join("state.json"), state).unwrap();
    let tensors = fs::read(dir.join("tensors.safetensors")).unwrap();
    let (header, data) = tensors.split_at(tensors.len() - 40);
    let text = String::from_utf8(header[8..].to_vec()).unwrap();
    let edits = [
        text.replace("order", "other"),
        text.replace("F32", "I32"),
        text.replace("[24,40]", "[24,41]"),
        text.replace("[0,24]", "[0,9]"),
        text.replace("\"shape\":[4]", "\"shape\":[18446744073709551615]"),
        "{}".to_owned(),
        "not JSON".to_owned(),
        text.replace('{', "["),
    ];
    for edit in edits {
        assert_ne!(edit, text);
        replace(1, &[&(edit.len() as u64).to_le_bytes(), edit.as_bytes(), data].concat());
        assert!(skipped(&root, &dir).contains("header"), "{edit}");
    }
    for length in [0, 1, u64::MAX, text.len() as u64 + 1] {
        replace(1, &[&length.to_le_bytes(), text.as_bytes(), data].concat());
        assert!(skipped(&root, &dir).contains("header"));
    }
}

/// A copy under another step's name would be taken for the newest: it is refused, under any other name it is not.
#[test]
fn a_renamed_checkpoint_is_not_the_newest() {
    let (root, dir) = two();
    let renamed = root.path().join("step-00000099");
    fs::rename(&dir, &renamed).unwrap();
    assert!(skipped(&root, &renamed).contains("step 99"));
    let best = root.path().join("best");
    fs::rename(&renamed, &best).unwrap();
    assert_eq!(load(&best).unwrap(), snapshot(2));
}

/// The warning about a skipped checkpoint names it and its bad tensor.
#[test]
fn skipping_is_said() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (root, dir) = two();
    let path = dir.join("tensors.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x80;
    fs::write(&path, bytes).unwrap();
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let found = tracing::subscriber::with_default(subscriber, || latest(root.path())).unwrap();
    assert_eq!(found, Some(root.path().join("step-00000001")));
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("WARN") && text.contains("step-00000002") && text.contains("`order`"), "{text}");
}

/// The configuration of another run is refused, and the error says what to do.
#[test]
fn another_runs_checkpoint_is_refused() {
    let (_root, dir) = two();
    let mut loaded = load(&dir).unwrap();
    assert!(loaded.expect_config(&dir, config_hash()).is_ok());
    let error = loaded.expect_config(&dir, Fingerprint::of("another").unwrap()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains(&config_hash().to_string()), "{error}");
    assert!(loaded.take(&dir, "model.weights", 5).is_err());
    assert_eq!(loaded.take(&dir, "order", 4).unwrap(), [3.0, 1.0, 2.0, f32::MIN]);
    assert!(loaded.take(&dir, "absent", 4).unwrap_err().to_string().contains("`absent`"));
}

/// What could not be read back is not written.
#[test]
fn unreadable_snapshots_are_not_written() {
    let root = tempfile::tempdir().unwrap();
    let tensor = |name: &str| Tensor::new(name, vec![1.0]);
    let deep = (0..200).fold(json!(0), |value, _| json!([value]));
    let bad = [
        Snapshot { tensors: vec![tensor("a"), tensor("a")], ..snapshot(1) },
        Snapshot { tensors: vec![tensor("")], ..snapshot(1) },
        Snapshot { tensors: vec![tensor("__metadata__")], ..snapshot(1) },
        Snapshot { tensors: vec![tensor("a\nb")], ..snapshot(1) },
        Snapshot { state: deep, ..snapshot(1) },
    ];
    for snapshot in bad {
        assert!(save(root.path(), &snapshot, 1).is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}

/// A JSON value of any shape.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Value::from))
}

/// The JSON pointers of a value's inner values.
fn places(value: &Value, place: &str, found: &mut Vec<String>) {
    found.push(place.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| places(value, &format!("{place}/{key}"), found)),
        Value::Array(all) => {
            all.iter().enumerate().for_each(|(i, value)| places(value, &format!("{place}/{i}"), found))
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A manifest with anything anywhere, even under a seal that fits, is refused or says what the good one said.
    #[test]
    fn mutated_manifests_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..3)) {
        let (_root, dir) = two();
        let mut changed = manifest(&dir);
        for (index, value) in edits {
            let mut found = Vec::new();
            places(&changed, "", &mut found);
            *changed.pointer_mut(index.get::<String>(&found)).unwrap() = value;
        }
        write_sealed(&dir, &changed);
        match load(&dir) {
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
            // temper_version, and a hash that only the run can judge.
            Ok(loaded) => prop_assert_eq!(Snapshot { config_hash: snapshot(2).config_hash, ..loaded }, snapshot(2)),
        }
    }

    /// The same for bytes changed, inserted and removed anywhere in the file.
    #[test]
    fn mutated_bytes_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..6)) {
        let (_root, dir) = two();
        let mut bytes = fs::read(dir.join("manifest.json")).unwrap();
        for (index, byte, kind) in edits {
            let at = index.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        fs::write(dir.join("manifest.json"), bytes).unwrap();
        match load(&dir) {
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
            // Only spaces changed.
            Ok(loaded) => prop_assert_eq!(loaded, snapshot(2)),
        }
    }
}
