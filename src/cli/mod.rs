//! The command line: one file a subcommand, each with its arguments and the function that runs it.

mod attack;
mod bench;
mod bench_counts;
mod checkpoint;
mod compare;
mod data;
mod demo;
mod device;
mod doctor;
mod eval;
mod flags;
mod harden;
mod lox;
mod merge;
mod parse;
mod plan;
mod print;
mod redteam;
mod report;
mod selftest;
mod show;
mod tune;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use flags::Flags;

/// Hardens open-weight language models against the fine-tuning that strips their safeguards, and measures how hard they
/// are to break.
#[derive(Debug, Parser)]
#[command(name = "temper", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Arguments {
    /// More log lines on stderr: -v info, -vv debug, -vvv trace. RUST_LOG wins over it
    #[arg(short, long, global = true, display_order = 1000, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
   0  success
   1  failure of the system: a file cannot be read or written, a device fails
   2  wrong usage or configuration
   3  an input file is not what it must be
   4  a loss or gradient is not finite
   5  not enough memory
  75  stopped by request; run again with --resume to go on

Data goes to stdout, everything else to stderr. temper uses no network.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Harden a tiny model and attack it before and after, to see the whole method work
    Demo(demo::Arguments),
    /// Harden a model as a run file says (TAR)
    Harden(harden::Arguments),
    /// Attack a model by fine-tuning it
    Attack(attack::Arguments),
    /// Attack a model with a whole suite, and say what it costs to break it
    Redteam(redteam::Arguments),
    /// Harden one model by several defences, attack every result alike, and say what each side paid
    Compare(compare::Arguments),
    /// Measure a model on a data set
    Eval(eval::Arguments),
    /// Write the report of a red-team run again, or compare the runs of several models
    Report(report::Arguments),
    /// Say what a run will cost in memory and arithmetic, before it starts
    Plan(plan::Arguments),
    /// Measure kernels and training steps on this machine's GPU
    #[command(subcommand)]
    Bench(bench::Command),
    /// Measure which ways of computing a model's steps are fastest on this machine's GPU, and keep them for all commands
    Tune(tune::Arguments),
    /// Check this machine and say how to mend what is missing
    Doctor(doctor::Arguments),
    /// Prove this machine's GPU: every kernel against exact formulas, then a small nested loop
    Selftest(selftest::Arguments),
    /// Look at training data
    #[command(subcommand)]
    Data(data::Command),
    /// Merge a LoRA adapter into its model
    Merge(merge::Arguments),
    /// Strengthen an alignment without training: go further in the few directions that it moved each matrix in (LoX)
    Lox(lox::Arguments),
    /// Look at checkpoints
    #[command(subcommand, visible_alias = "ckpt")]
    Checkpoint(checkpoint::Command),
}

/// The arguments of this process, and the flags of the command that they choose. Wrong ones end the process.
pub fn parse() -> (Arguments, Flags) {
    let command = Arguments::command();
    let matches = command.clone().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    (arguments, Flags::of(&command, &matches))
}

/// Runs a subcommand. Errors name the settings as `flags` spells them.
pub fn run(command: Command, flags: &Flags) -> anyhow::Result<()> {
    dispatch(command).map_err(|error| flags.spell(error))
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Harden(arguments) => harden::run(&arguments),
        Command::Attack(arguments) => attack::run(&arguments),
        Command::Redteam(arguments) => redteam::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Bench(command) => bench::run(&command),
        Command::Tune(arguments) => tune::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Selftest(arguments) => selftest::run(&arguments),
        Command::Data(command) => data::run(&command),
        Command::Merge(arguments) => merge::run(&arguments),
        Command::Lox(arguments) => lox::run(&arguments),
        Command::Checkpoint(command) => checkpoint::run(&command),
    }
}
