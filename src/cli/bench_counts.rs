//! `temper bench` without a clock: the counters of kernels, and the ledgers of steps.

use temper::Error;
use temper::backend::any::{DeviceName, SimulatedGpu};
use temper::backend::cuda::{Counters, Cuda, Ledger};
use temper::bench::{self, CountReport, CountRow, LedgerReport, NotRun, Options, Shapes, StepLedger};

use super::bench::{Arguments, limit_layers};
use super::device::DeviceArguments;
use super::print;

/// The simulator, which alone counts: the one that is named, or that of compute capability 8.0.
pub fn simulator(device: &DeviceArguments) -> temper::Result<Cuda> {
    let name = match device.device {
        DeviceName::Auto => DeviceName::Simulator(SimulatedGpu::default()),
        named @ DeviceName::Simulator(_) => named,
        _ => {
            return Err(Error::config("device", "only the simulator counts", "name sim or sim:sm_90, or leave it out"));
        }
    };
    DeviceArguments { device: name, ..device.clone() }.open_cuda()
}

/// Counts what every kernel does, and prints it.
pub fn counters(cuda: &Cuda, arguments: &Arguments, options: &Options) -> anyhow::Result<()> {
    let report = bench::counts(cuda, options)?;
    if arguments.json {
        print::json(&report)?;
    } else {
        print::text(&describe_counts(&report))?;
    }
    succeed(&report.not_run)
}

/// Adds up what the steps tell a device, and prints it.
pub fn ledgers(arguments: &Arguments, layers: Option<u16>) -> anyhow::Result<()> {
    let mut shapes = Shapes::named(arguments.shapes.into());
    limit_layers(&mut shapes, layers)?;
    let options = Options { shapes, effort: bench::Effort::simulated(), filter: arguments.filter.clone() };
    let report = bench::ledgers(&options)?;
    if arguments.json {
        print::json(&report)?;
    } else {
        print::text(&describe_ledgers(&report))?;
    }
    succeed(&report.not_run)
}

fn succeed(not_run: &[NotRun]) -> anyhow::Result<()> {
    let words: Vec<String> = not_run.iter().map(|row| format!("{}: {}", row.name, row.reason)).collect();
    anyhow::ensure!(words.is_empty(), "not counted: {}", words.join("; "));
    Ok(())
}

fn describe_counts(report: &CountReport) -> String {
    let header = [
        "kernel",
        "launches",
        "blocks",
        "bytes",
        "to floor",
        "asked",
        "sectors",
        "banks",
        "TFLOP",
        "to useful",
        "shape",
    ];
    let table = print::table(header, report.rows.iter().map(count_cells));
    format!(
        "{}: counts, no times\n\
         to floor: different bytes of all launches / bytes of the operation; asked: bytes of all accesses / different bytes;\n\
         sectors, banks: touched / least;\n\
         to useful: tensor-core FLOP and products executed / needed\n\n{table}",
        report.device
    )
}

fn count_cells(row: &CountRow) -> [String; 11] {
    let counters = &row.counters;
    let Ledger { products, clears, copies, .. } = &row.ledger;
    let moved = counters.unique_bytes() + products.bytes + clears.all.bytes + 2 * copies.bytes;
    let executed = counters.tensor_flop as f64 + products.flop;
    [
        row.name.clone(),
        row.ledger.launches().to_string(),
        counters.blocks.to_string(),
        print::bytes(moved),
        ratio(moved as f64, row.bytes),
        ratio((counters.bytes_read + counters.bytes_written) as f64, counters.unique_bytes() as f64),
        sectors(counters),
        ratio(counters.shared_wavefronts as f64, counters.shared_wavefronts_ideal as f64),
        if executed > 0.0 { format!("{:.6}", executed / 1e12) } else { "-".into() },
        if executed > 0.0 { ratio(executed, row.flop) } else { "-".into() },
        row.shape.clone(),
    ]
}

fn sectors(counters: &Counters) -> String {
    let touched = counters.load_sectors + counters.store_sectors;
    ratio(touched as f64, (counters.load_sectors_ideal + counters.store_sectors_ideal) as f64)
}

fn ratio(value: f64, least: f64) -> String {
    if least > 0.0 { format!("{:.3}", value / least) } else { "-".into() }
}

fn describe_ledgers(report: &LedgerReport) -> String {
    let mut text = format!("{}: counts, no times; bytes of kernels are those of their closed forms\n", report.device);
    for step in &report.steps {
        text += &format!("\n{}\n{}", heading(step), print::table(LEDGER_HEADER, ledger_cells(&step.ledger)));
    }
    text
}

const LEDGER_HEADER: [&str; 6] = ["what", "calls", "bytes", "not hidden", "arithmetic", "to useful"];

fn heading(step: &StepLedger) -> String {
    let clears = &step.ledger.clears;
    format!(
        "{}: {} layers, {} sequences, {} tokens; {} launches, {} executed, {:.3} of the useful; {}, {} not hidden \
         behind arithmetic; cleared and overwritten {}, cleared and added to {}",
        step.name,
        step.layers,
        step.sequences,
        step.tokens,
        step.ledger.launches(),
        print::flop(step.executed_flop),
        step.executed_flop / step.useful_flop,
        print::bytes(step.bytes as u64),
        print::bytes((step.bytes - step.hidden_bytes) as u64),
        print::bytes(clears.overwritten_bytes),
        print::bytes(clears.added_to_bytes),
    )
}

fn ledger_cells(ledger: &Ledger) -> Vec<[String; 6]> {
    let mut kernels: Vec<_> = ledger.kernels.values().collect();
    kernels.sort_by(|a, b| b.floor_bytes.total_cmp(&a.floor_bytes));
    let amount = |bytes: f64| print::bytes(bytes as u64);
    let mut rows: Vec<[String; 6]> = kernels
        .iter()
        .map(|kernel| {
            let missing = if kernel.without_closed_form > 0 { "*" } else { "" };
            [
                format!("{}{missing}", kernel.kernel),
                kernel.counters.launches.to_string(),
                amount(kernel.floor_bytes),
                amount(kernel.floor_bytes - kernel.hidden_bytes),
                if kernel.executed_flop > 0.0 { print::flop(kernel.executed_flop) } else { "-".into() },
                ratio(kernel.executed_flop, kernel.useful_flop),
            ]
        })
        .collect();
    let products = &ledger.products;
    rows.insert(
        0,
        [
            "products".into(),
            products.count.to_string(),
            amount(products.bytes as f64),
            amount(products.bytes as f64 - products.hidden_bytes),
            print::flop(products.flop),
            "-".into(),
        ],
    );
    let moves = [("clears", &ledger.clears.all, 1.0), ("copies", &ledger.copies, 2.0)];
    for (name, moves, passes) in moves {
        let moved = amount(passes * moves.bytes as f64);
        rows.push([name.into(), moves.count.to_string(), moved.clone(), moved, "-".into(), "-".into()]);
    }
    for (name, moves) in [("from main memory", &ledger.to_device), ("to main memory", &ledger.to_host)] {
        rows.push([
            name.into(),
            moves.count.to_string(),
            amount(moves.bytes as f64),
            "-".into(),
            "-".into(),
            "-".into(),
        ]);
    }
    rows
}
