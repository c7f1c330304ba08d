//! A judge of answers that is a program of the user's: prompts and answers go in as JSON lines, a number a line comes out.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Bytes of its output that are read for each answer, and beside.
const OUTPUT_FOR_EACH: u64 = 64 << 10;
const OUTPUT_BESIDE: u64 = 1 << 20;
/// How often a program that has closed its output is asked whether it has ended.
const PATIENCE: Duration = Duration::from_millis(5);

const REMEDY: &str = "it reads {\"prompt\": …, \"response\": …} a line and writes a number, or {\"score\": …}, a line";

/// Has `command` judge (prompt, answer) pairs, and returns its score of each.
///
/// `command` is a program and its arguments, separated by white space; no shell reads it. It gets one JSON object with
/// `prompt` and `response` a line on its standard input, which is then closed, and writes one number, or one object with a
/// number `score`, a line; empty lines do not count. What it writes to standard error passes through.
///
/// Fails if it cannot be started, does not end well or within `limit`, or writes anything but as many finite numbers.
pub fn judge(command: &str, exchanges: &[(&str, &str)], limit: Duration) -> Result<Vec<f64>> {
    // `None`: so far away that no clock shows it.
    let deadline = Instant::now().checked_add(limit);
    let mut child = start(command)?;
    let output = feed(&mut child, exchanges);
    let output = match output.recv_timeout(limit) {
        Ok(output) => output,
        Err(RecvTimeoutError::Timeout) => return Err(too_slow(command, child, limit)),
        Err(RecvTimeoutError::Disconnected) => Vec::new(),
    };
    let status = loop {
        match child.try_wait().map_err(Error::io("wait for", command))? {
            Some(status) => break status,
            None if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Err(too_slow(command, child, limit));
            }
            None => std::thread::sleep(PATIENCE),
        }
    };
    if !status.success() {
        return Err(refuse(command, format!("ended with {}", code(status))));
    }
    let output = String::from_utf8(output).map_err(|_| refuse(command, "wrote something that is not UTF-8".into()))?;
    scores(&output, exchanges.len()).map_err(|problem| refuse(command, problem))
}

fn refuse(command: &str, problem: String) -> Error {
    Error::config("judge", format!("`{command}` {problem}"), REMEDY)
}

fn code(status: ExitStatus) -> String {
    status.code().map_or_else(|| "a signal".into(), |code| format!("exit status {code}"))
}

fn start(command: &str) -> Result<Child> {
    let mut words = command.split_whitespace();
    let Some(program) = words.next() else {
        return Err(Error::config("judge", "there is no command", REMEDY));
    };
    let child = Command::new(program).args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    child.map_err(Error::io("run", program))
}

/// Writes the pairs and reads what comes back, both aside: a program may answer before it has read everything.
fn feed(child: &mut Child, exchanges: &[(&str, &str)]) -> Receiver<Vec<u8>> {
    let line = |(prompt, response): &(&str, &str)| json!({"prompt": prompt, "response": response}).to_string() + "\n";
    let lines: String = exchanges.iter().map(line).collect();
    if let Some(mut input) = child.stdin.take() {
        // A program that ends without reading everything makes this fail; how it ended tells whether that was right.
        std::thread::spawn(move || input.write_all(lines.as_bytes()));
    }
    let (sender, receiver) = channel();
    if let Some(output) = child.stdout.take() {
        let most = OUTPUT_BESIDE + OUTPUT_FOR_EACH * exchanges.len() as u64;
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // An error here is an output that ends early, which the number of lines shows.
            let _ = output.take(most).read_to_end(&mut bytes);
            let _ = sender.send(bytes);
        });
    }
    receiver
}

/// Ends a program that has had its time.
fn too_slow(command: &str, mut child: Child, limit: Duration) -> Error {
    // It may have ended just now, which makes killing it fail.
    let _ = child.kill();
    let _ = child.wait();
    let problem = format!("`{command}` was not done after {} seconds", limit.as_secs_f64());
    Error::config("judge", problem, "give it more time with `judge_seconds`, or fewer answers")
}

fn scores(output: &str, expected: usize) -> Result<Vec<f64>, String> {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.len() != expected {
        return Err(format!("wrote {} lines for {expected} answers", lines.len()));
    }
    let score = |(index, line): (usize, &&str)| {
        let value: Option<Value> = serde_json::from_str(line).ok();
        let number = value.as_ref().and_then(|value| value.as_f64().or_else(|| value.get("score")?.as_f64()));
        number.filter(|number| number.is_finite()).ok_or_else(|| {
            let line: String = line.chars().take(80).collect();
            format!("wrote `{line}` as line {}, not a number", index + 1)
        })
    };
    lines.iter().enumerate().map(score).collect()
}
