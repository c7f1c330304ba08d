//! The judge command: what goes in, what comes back, and every way in which it can go wrong.

use std::path::Path;
use std::time::{Duration, Instant};

use temper::Result;
use temper::eval::judge;

const EXCHANGES: [(&str, &str); 3] = [("How is \"bread\" made?", "With flour.\nAnd water."), ("Tea?", ""), ("é", "ü")];
const LONG: Duration = Duration::from_secs(60);

/// Runs a shell script as the judge.
fn run(directory: &Path, script: &str, limit: Duration) -> Result<Vec<f64>> {
    let file = directory.join("judge.sh");
    std::fs::write(&file, script).unwrap();
    judge(&format!("sh {}", file.display()), &EXCHANGES, limit)
}

#[test]
fn prompts_and_answers_go_in_as_json_lines_and_numbers_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let seen = directory.path().join("seen");
    let script =
        format!("cat > {}; echo 0.5; echo; echo '{{\"score\": -2, \"why\": \"x\"}}'; echo 1e1", seen.display());
    assert_eq!(run(directory.path(), &script, LONG).unwrap(), [0.5, -2.0, 10.0]);
    let lines = std::fs::read_to_string(seen).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    for (line, (prompt, response)) in lines.iter().zip(EXCHANGES) {
        assert_eq!(line, &serde_json::json!({"prompt": prompt, "response": response}));
    }
}

/// Output larger than a pipe holds while the input has not been read, and input larger than a pipe that nobody reads.
#[test]
fn neither_side_waits_for_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("judge.sh");
    std::fs::write(&file, "head -c 300000 /dev/zero | tr '\\0' '\\n'; echo 1; exit 0").unwrap();
    let long = "x".repeat(1 << 20);
    let scores = judge(&format!("sh {}", file.display()), &[("prompt", &long)], LONG).unwrap();
    assert_eq!(scores, [1.0]);
}

#[test]
fn whatever_else_it_does_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    for (script, words) in [
        ("echo 1; echo 2", "wrote 2 lines for 3 answers"),
        ("echo 1; echo 2; echo 3; echo 4", "wrote 4 lines for 3 answers"),
        ("echo 1; echo yes; echo 3", "`yes` as line 2"),
        ("echo 1; echo 2; echo '{\"score\": \"high\"}'", "as line 3"),
        ("echo 1; echo NaN; echo 3", "`NaN` as line 2"),
        ("echo 1; echo 2; echo 3; exit 3", "exit status 3"),
        ("printf '1\\n2\\n\\377\\n'", "not UTF-8"),
        ("kill -9 $$", "a signal"),
    ] {
        let error = run(directory.path(), script, LONG).unwrap_err();
        assert!(error.to_string().contains(words), "{script}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    assert!(judge("  ", &EXCHANGES, LONG).unwrap_err().to_string().contains("no command"));
    assert!(judge("/nowhere/judge", &EXCHANGES, LONG).unwrap_err().to_string().contains("/nowhere/judge"));
}

/// A program that does not end, with its output open or closed, is ended.
#[test]
fn the_time_limit_holds() {
    let directory = tempfile::tempdir().unwrap();
    for script in ["exec sleep 50", "exec >&-; exec sleep 50"] {
        let start = Instant::now();
        let error = run(directory.path(), script, Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("not done after 0.3 seconds"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
