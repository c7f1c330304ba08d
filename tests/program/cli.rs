//! The `temper` program from outside: help, exit codes, streams.

use std::path::Path;
use std::process::{Output, Stdio};

use crate::support::program::{self, run, stderr, stdout};

fn temper(arguments: &[&str]) -> Output {
    run(&mut program::temper(arguments))
}

/// `temper --help` and the help of every command below it, each behind the line that asks for it.
fn help_of(command: &[&str]) -> String {
    let arguments = [command, &["--help"]].concat();
    let output = temper(&arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    let own = stdout(&output);
    let listed = own.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap());
    let names = listed.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    let below: String =
        names.filter(|name| *name != "help").map(|name| help_of(&[command, &[name]].concat())).collect();
    format!("$ temper {}\n{own}\n{below}", arguments.join(" "))
}

/// What the program says of itself is what `help.txt` has, which a person has read: no command, option or default comes or
/// goes unnoticed.
#[test]
fn the_help_of_every_command_is_the_one_that_was_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program/help.txt");
    let found = help_of(&[]);
    if std::env::var_os("TEMPER_UPDATE_HELP").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    let difference = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    let remedy = "set TEMPER_UPDATE_HELP=1 to write it again, and read what changed";
    assert!(found == expected, "the help is no longer that of {}: {difference:?}; {remedy}", path.display());
}

#[test]
fn the_exit_codes_are_documented_in_the_help() {
    let help = stdout(&temper(&["--help"]));
    for code in
        ["0  success", "1  failure", "2  wrong usage", "3  an input", "4  a loss", "5  not enough", "75  stopped"]
    {
        assert!(help.contains(code), "{code}");
    }
}

/// Wrong arguments: (arguments, words of the message).
#[test]
fn wrong_usage_exits_with_2_and_says_what_is_right() {
    let attack = ["attack", "--model", "m", "--data", "d", "--out", "o"];
    let with = |more: &[&'static str]| attack.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>();
    for (arguments, words) in [
        (vec![], "Usage"),
        (vec!["hardn"], "harden"),
        (vec!["harden"], "--out"),
        (with(&["--optimizer", "adamx"]), "adamw"),
        (with(&["--schedule", "sgdr:0"]), "sgdr:0"),
        (with(&["--schedule", "step"]), "constant, cosine, linear or sgdr:PERIOD"),
        (with(&["--lr", "-1"]), "above 0"),
        (with(&["--lr", "nan"]), "above 0"),
        (with(&["--params", "lora", "--dropout", "1"]), "less than 1"),
        (with(&["--params", "lora", "--rank", "0"]), "at least 1"),
        (with(&["--rank", "8"]), "no effect"),
        (with(&["--params", "lora", "--rank", "1000000000"]), "at most 65536"),
        (with(&["--switch", "0.5"]), "two streams"),
        (with(&["--mixture", "d=1.0"]), "there is no [data.d]"),
        (with(&["--data", "e"]), "two files have the name `data`"),
        (with(&["--data", "b=e"]), "there are 2 streams"),
        (with(&["--set", "attack.lrr=1"]), "did you mean `lr`?"),
        (with(&["--betas", "0.9"]), "two numbers"),
        (with(&["--set", "attack.seeds=[1]"]), "one seed"),
        (vec!["attack", "attack.toml", "--out", "o", "--lr", "1"], "cannot be used with"),
        (with(&["--steps", "0"]), "at least 1"),
        (with(&["--dtype", "float32"]), "f32, bf16 or f16"),
        (with(&["--targets", "q_proj,z_proj"]), "z_proj"),
    ] {
        let output = temper(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?} wrote to stdout");
    }
}

#[test]
fn doctor_says_what_it_found_and_what_of_a_gpu() {
    let output = temper(&["doctor"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let gpu = if cfg!(feature = "cuda") {
        ["GPU driver", "GPU kernels", "GPU products"]
    } else {
        ["the CUDA backend is not part of this build"; 3]
    };
    for words in ["CPU features", "threads", "memory", "temporary directory"].into_iter().chain(gpu) {
        assert!(text.contains(words), "{text}");
    }
    let json: serde_json::Value = serde_json::from_slice(&temper(&["doctor", "--json"]).stdout).unwrap();
    let checks = json.as_array().unwrap();
    assert!(checks.len() >= 6);
    assert!(checks.iter().all(|check| check["name"].is_string() && check["status"].is_string()));
}

#[test]
fn doctor_fails_with_a_remedy_where_no_temporary_file_can_be_written() {
    let output = run(program::temper(&["doctor"]).env("TMPDIR", "/nonexistent"));
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("set TMPDIR to a directory that can be written"));
    assert!(stderr(&output).contains("not ready: temporary directory"));
}

/// `temper … | head` is no failure: the reader closed its end before anything was written.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_success() {
    let mut command = program::temper(&["doctor", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn checkpoint_names_what_is_not_there() {
    let missing = temper(&["checkpoint", "ls", "/nonexistent/run"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).starts_with("temper: cannot read /nonexistent/run: "), "{}", stderr(&missing));
    assert_eq!(stderr(&missing).matches("No such file").count(), 1, "{}", stderr(&missing));

    let empty = tempfile::tempdir().unwrap();
    let output = temper(&["checkpoint", "verify", empty.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("there is no checkpoint in it; name a checkpoint"), "{}", stderr(&output));
}
