//! The `temper` program: arguments in, exit code out.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let (arguments, flags) = cli::parse();
    start_tracing(arguments.verbose);
    // The command runs on a thread of rayon's pool: there a parallel loop starts at once, while every loop of a thread outside
    // is handed over to the pool first.
    match rayon::scope(|_| cli::run(arguments.command, &flags)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough (`temper plan … | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("temper: {}", one_line(&error));
            exit_code(&error)
        }
    }
}

/// Logs go to stderr; `RUST_LOG` decides which, and `-v`, `-vv`, `-vvv` where it is not set.
fn start_tracing(verbose: u8) {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// The chain of causes, without those that the message before already ends with.
fn one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        said if said.contains(&cause) => line,
        _ => format!("{line}: {cause}"),
    })
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let ours = error.chain().find_map(|cause| cause.downcast_ref::<temper::Error>());
    ExitCode::from(ours.map_or(1, temper::Error::exit_code))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
