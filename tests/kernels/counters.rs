//! What every kernel does at one odd small shape, as golden figures: a load that is not coalesced any more, a bank conflict,
//! a second pass over memory or a product more changes one of them. And what whole steps tell the device at the shapes of
//! Llama 3 8B, from dry runs, whose closed forms the counts of the small shapes bear out.
//!
//! Where a change is meant to change a figure, the failing test prints the new table.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::Value;
use temper::backend::cuda::{Cuda, LaunchCounters, Ledger, PeakRates};
use temper::bench::{self, CountReport, Effort, Options, Shapes, ShapesName};
use temper::model::ModelConfig;
use temper::ops::{self, Backend, CopyValues, DType};

use crate::program;
use crate::support::{Pair, random};

fn hopper() -> Cuda {
    Cuda::simulated_as(DType::Bf16, (9, 0), 0).expect("a simulated device")
}

/// The bench rows whose name contains `filter`, counted on a simulated Hopper.
fn count(shapes: Shapes, filter: &str) -> CountReport {
    count_on(&hopper(), shapes, filter)
}

fn count_on(cuda: &Cuda, shapes: Shapes, filter: &str) -> CountReport {
    let options = Options { shapes, effort: Effort::simulated(), filter: Some(filter.into()) };
    let report = bench::counts(cuda, &options).expect("counts");
    assert!(report.not_run.is_empty(), "{:#?}", report.not_run);
    report
}

/// Every bench row at the tiny shapes, counted once.
fn report() -> &'static CountReport {
    static REPORT: OnceLock<CountReport> = OnceLock::new();
    REPORT.get_or_init(|| count(Shapes::named(ShapesName::Tiny), ""))
}

/// All launches of each kernel together.
fn kernels(report: &CountReport) -> BTreeMap<&str, LaunchCounters> {
    let mut kernels: BTreeMap<&str, LaunchCounters> = BTreeMap::new();
    for launches in report.rows.iter().flat_map(|row| row.ledger.kernels.values()) {
        let sum = kernels.entry(&launches.kernel).or_default();
        sum.counters.add(&launches.counters);
        sum.floor_bytes += launches.floor_bytes;
        sum.executed_flop += launches.executed_flop;
        sum.without_closed_form += launches.without_closed_form;
        sum.beside_closed_form += launches.beside_closed_form;
    }
    kernels
}

/// The figures of a kernel: launches; sectors of loads and of stores and wavefronts of shared memory, each with its ideal;
/// different bytes; bytes asked for; FLOP of tensor cores; bytes that the copy engine moves; bytes of shared memory that products
/// of a warpgroup read; exponentials.
fn figures(launches: &LaunchCounters) -> String {
    let c = &launches.counters;
    format!(
        "{} loads {}/{} stores {}/{} banks {}/{} bytes {} of {} flop {} copied {} multiplied from {} exponentials {}",
        c.launches,
        c.load_sectors,
        c.load_sectors_ideal,
        c.store_sectors,
        c.store_sectors_ideal,
        c.shared_wavefronts,
        c.shared_wavefronts_ideal,
        c.unique_bytes(),
        c.bytes_read + c.bytes_written,
        c.tensor_flop,
        c.copy_engine_bytes,
        c.wgmma_shared_bytes,
        c.exponentials,
    )
}

/// Compares with a table of golden figures. Panics with the new table where they differ.
fn assert_golden(golden: &str, found: &[(String, String)], what: &str) {
    let lines: Vec<String> = found.iter().map(|(name, figures)| format!("{name}: {figures}")).collect();
    let wanted: Vec<&str> = golden.lines().filter(|line| !line.is_empty()).collect();
    let differ: Vec<&String> = lines.iter().filter(|line| !wanted.contains(&line.as_str())).collect();
    assert!(
        differ.is_empty() && wanted.len() == lines.len(),
        "{what} changed:\n{differ:#?}\nthe new table:\n{}\n",
        lines.join("\n")
    );
}

#[test]
fn kernels_do_what_they_did() {
    let found: Vec<(String, String)> =
        kernels(report()).iter().map(|(name, launches)| (name.to_string(), figures(launches))).collect();
    assert_golden(include_str!("golden/kernels.txt"), &found, "what kernels do");
}

/// The tiny shapes with heads of 128.
fn wide_heads() -> Shapes {
    let tiny = Shapes::named(ShapesName::Tiny);
    let model = ModelConfig { head_dim: 128, hidden_size: 256, num_attention_heads: 2, ..tiny.model.clone() };
    Shapes { model: ModelConfig { num_key_value_heads: 1, ..model }, ..tiny }
}

/// Of what the golden figures above leave out: attention with heads of 128 and without wgmma; attention, products, norms,
/// SwiGLU and rotations in f32.
#[test]
fn kernels_of_other_modes_do_what_they_did() {
    let [older, f32] = [((8, 0), DType::Bf16), ((9, 0), DType::F32)]
        .map(|(capability, dtype)| Cuda::simulated_as(dtype, capability, 0).expect("a simulated device"));
    let tiny = || Shapes::named(ShapesName::Tiny);
    let mut reports = vec![
        count(wide_heads(), "attention_"),
        count_on(&older, tiny(), "attention_"),
        count_on(&older, wide_heads(), "attention_"),
    ];
    reports.extend(["attention_", "linear_", "norm", "swiglu", "rope"].map(|filter| count_on(&f32, tiny(), filter)));
    let mut found: BTreeMap<&str, String> = BTreeMap::new();
    for (name, launches) in reports.iter().flat_map(kernels) {
        if !kernels(report()).contains_key(name) {
            found.entry(name).or_insert_with(|| figures(&launches));
        }
    }
    for wanted in ["attention_forward_64_bf16", "attention_backward", "sm90_attention_forward_128_bf16", "gemm_nt_f32"]
    {
        assert!(found.keys().any(|name| name.starts_with(wanted)), "no {wanted}");
    }
    let found: Vec<(String, String)> = found.into_iter().map(|(name, figures)| (name.to_string(), figures)).collect();
    assert_golden(include_str!("golden/other_modes.txt"), &found, "what kernels of other modes do");
}

/// Holds the closed form of each launch of a report to its counts; returns how many kernels were checked.
fn assert_closed_forms(report: &CountReport) -> usize {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (name, launches) in kernels(report) {
        if launches.without_closed_form > 0 {
            continue;
        }
        checked += 1;
        // It adds rows of equal ids together, and the closed form cannot know which are equal.
        if name == "embedding_sum_runs_bf16" {
            assert!(launches.floor_bytes > launches.counters.unique_bytes() as f64);
            continue;
        }
        if launches.beside_closed_form > 0 {
            let LaunchCounters { counters, floor_bytes, executed_flop, beside_closed_form, .. } = launches;
            let (bytes, flop) = (counters.unique_bytes(), counters.tensor_flop);
            wrong.push(format!(
                "{name}: {beside_closed_form} of {} launches, together {bytes} bytes, not {floor_bytes}; {flop} FLOP, not \
                 {executed_flop}",
                counters.launches
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    checked
}

/// The different bytes of every kernel that a step of Llama launches are those of its closed form, and so are the FLOP
/// that the tensor cores execute.
#[test]
fn closed_forms_are_what_kernels_do() {
    assert!(assert_closed_forms(report()) > 30);
}

/// The same where sequences, heads and ranks take several tiles: causal tiles, stages and parts in scratch.
#[test]
fn closed_forms_hold_beyond_a_tile() {
    let wide = wide_heads();
    let model = ModelConfig { max_position_embeddings: 512, ..wide.model.clone() };
    let long = Shapes { model: model.clone(), sequences: 1, length: 300, short_length: 130, ..wide.clone() };
    assert!(assert_closed_forms(&count(long.clone(), "attention_")) >= 4);
    let ranks = Shapes { model, sequences: 1, length: 200, rank: 40, ..wide };
    assert!(assert_closed_forms(&count(ranks, "lora_")) >= 5);
    // Rows, columns and elements that no block takes at once, and that no vector divides.
    for (filter, least) in [("loss_head", 1), ("norm", 2), ("swiglu", 2), ("rope", 1), ("bias", 1), ("embedding", 2)] {
        let found = assert_closed_forms(&count(long.clone(), filter));
        assert!(found >= least, "{filter}: {found} kernels");
    }
}

/// The bound grows with the work and is the same every time.
#[test]
fn the_bound_compares_ways_to_compute_the_same() {
    let cycles = |name: &str| {
        let row = report().rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no {name}"));
        row.ledger.floor_cycles(&PeakRates::h200())
    };
    assert!(cycles("attention_backward/2x24") > cycles("attention_forward/2x24"));
    assert!(cycles("linear_forward/down/own") > cycles("linear_forward/down"));
}

fn describe(ledger: &Ledger, useful: f64) -> String {
    let unknown: Vec<&str> = ledger
        .kernels
        .values()
        .filter(|kernel| kernel.without_closed_form > 0)
        .map(|kernel| kernel.kernel.as_str())
        .collect();
    assert!(unknown.is_empty(), "kernels of a step without a closed form: {unknown:?}");
    format!(
        "{} launches, {} products, {:.3} TFLOP, to useful {:.4}, {:.2} GB, not hidden {:.2}, cleared {:.2} of which \
         overwritten {:.2} and added to {:.2}, copied {:.3}, from main memory {:.3} MB",
        ledger.launches(),
        ledger.products.count,
        ledger.executed_flop() / 1e12,
        ledger.executed_flop() / useful,
        ledger.bytes() / 1e9,
        (ledger.bytes() - ledger.hidden_bytes()) / 1e9,
        ledger.clears.all.bytes as f64 / 1e9,
        ledger.clears.overwritten_bytes as f64 / 1e9,
        ledger.clears.added_to_bytes as f64 / 1e9,
        ledger.copies.bytes as f64 / 1e9,
        ledger.to_device.bytes as f64 / 1e6,
    )
}

/// The steps of Llama 3 8B: launches, products, bytes and clears do not grow unseen.
#[test]
fn steps_do_what_they_did() {
    let options = Options { shapes: Shapes::named(ShapesName::Llama3_8b), effort: Effort::simulated(), filter: None };
    let report = bench::ledgers(&options).expect("ledgers");
    assert!(report.not_run.is_empty(), "{:#?}", report.not_run);
    let found: Vec<(String, String)> =
        report.steps.iter().map(|step| (step.name.clone(), describe(&step.ledger, step.useful_flop))).collect();
    assert_golden(include_str!("golden/steps.txt"), &found, "what steps do");
}

/// A dry run tells the device what the simulator is told: the same launches, products, clears and copies.
#[test]
fn a_dry_run_is_the_step_itself() {
    let run = |cuda: &Cuda| {
        let mut random = random(3);
        let [x, w] = [(33, 64), (48, 64)].map(|(rows, cols)| Pair::random(cuda, &mut random, rows, cols, 1.0));
        let mut y = Pair::poisoned(cuda, DType::Bf16, 33, 48);
        let [mut h, mut copied] = [0, 1].map(|_| Pair::poisoned(cuda, DType::Bf16, 33, 24));
        let ((), ledger) = cuda
            .counted(|| {
                cuda.run(ops::Clear { to: y.cuda.view_mut() })?;
                cuda.run(ops::LinearForward { x: x.cuda.view(), w: w.cuda.view(), y: y.cuda.view_mut() })?;
                cuda.run(ops::SwigluForward { gate_up: y.cuda.view(), h: h.cuda.view_mut() })?;
                cuda.run(CopyValues { from: h.cuda.view(), to: copied.cuda.view_mut() })
            })
            .expect("work");
        ledger.expect("both count")
    };
    let mut simulated = run(&hopper());
    let dry = run(&Cuda::dry(DType::Bf16).expect("a dry device"));
    for kernel in simulated.kernels.values_mut() {
        let counted = std::mem::take(&mut kernel.counters);
        kernel.counters.launches = counted.launches;
        kernel.counters.blocks = counted.blocks;
    }
    assert_eq!(simulated, dry);
}

/// A planted waste: a buffer that is cleared and then overwritten, by a product, by a kernel, or by another clear; beside
/// the twin that reads its zeros.
#[test]
fn zeros_that_nobody_reads_are_told() {
    let cuda = hopper();
    let mut random = random(4);
    let [x, w] = [(16, 64), (48, 64)].map(|(rows, cols)| Pair::random(&cuda, &mut random, rows, cols, 1.0));
    let mut y = Pair::poisoned(&cuda, DType::Bf16, 16, 48);
    let mut h = Pair::poisoned(&cuda, DType::Bf16, 16, 24);
    let ((), ledger) = cuda
        .counted(|| {
            cuda.run(ops::Clear { to: y.cuda.view_mut() })?;
            cuda.run(ops::LinearForward { x: x.cuda.view(), w: w.cuda.view(), y: y.cuda.view_mut() })?;
            cuda.run(ops::Clear { to: h.cuda.view_mut() })?;
            cuda.run(ops::SwigluForward { gate_up: y.cuda.view(), h: h.cuda.view_mut() })
        })
        .expect("work");
    let clears = ledger.expect("a ledger").clears;
    assert_eq!((clears.all.bytes, clears.overwritten_bytes), (16 * 72 * 2, 16 * 72 * 2));
    let ((), ledger) = cuda
        .counted(|| {
            cuda.run(ops::Clear { to: y.cuda.view_mut() })?;
            cuda.run(ops::SwigluForward { gate_up: y.cuda.view(), h: h.cuda.view_mut() })
        })
        .expect("work");
    assert_eq!(ledger.expect("a ledger").clears.overwritten_bytes, 0);
}

/// The commands print tables for people and JSON for programs; a device that cannot count says so.
#[test]
fn the_commands_print_counts_and_ledgers() {
    let temper = |arguments: &[&str]| program::stdout(&program::succeed(&mut program::temper(arguments)));
    let kernels = ["bench", "kernels", "--device", "sim", "--shapes", "tiny", "--filter", "rope", "--counters"];
    let table = temper(&kernels);
    assert!(table.contains("no times") && table.contains("rope"), "{table}");
    let report: Value = serde_json::from_str(&temper(&[&kernels[..], &["--json"]].concat())).expect("JSON");
    let counters = &report["rows"][0]["counters"];
    assert!(counters["load_sectors"].as_u64() > counters["load_sectors_ideal"].as_u64(), "{report:#}");
    let step = ["bench", "step", "--ledger", "--layers", "1", "--filter", "lora"];
    let table = temper(&step);
    for ignored in [["--out", "x.json"], ["--precision", "f32"], ["--device", "sim"], ["--tuning", "off"]] {
        let refused = program::temper(&[&step[..], &ignored].concat()).output().expect("the program");
        assert!(!refused.status.success() && program::stderr(&refused).contains(ignored[0]), "{ignored:?}");
    }
    // Counts come from the simulator, of either generation, and from nothing else.
    let counted = |more: &[&str]| temper(&[&["bench", "kernels", "--shapes", "tiny", "--counters"], more].concat());
    let attention = ["--filter", "attention_forward/3x8"];
    assert!(counted(&attention).contains("simulated sm_80"));
    assert!(counted(&[&attention[..], &["--device", "sim:sm_90"]].concat()).contains("simulated sm_90"));
    for (arguments, words) in [
        (&["bench", "kernels", "--shapes", "tiny", "--counters", "--device", "cuda"][..], "only the simulator counts"),
        (
            &["bench", "kernels", "--shapes", "tiny", "--counters", "--filter", "nosuch"][..],
            "--filter: no row has `nosuch`",
        ),
        (&["bench", "kernels", "--shapes", "tiny", "--device", "sim", "--filter", "nosuch"][..], "rms_norm_forward"),
        (&["bench", "step", "--ledger", "--filter", "nosuch"][..], "there are full_attack_step, lora_attack_step"),
        (&["bench", "step", "--ledger", "--layers", "33"][..], "--layers: 33 are more than there are"),
        (&["selftest", "--device", "sim", "--only", "nosuch"][..], "--only: no operation has `nosuch`"),
        (&["selftest", "--device", "sim", "--tuning", ""][..], "expected a file, or off"),
        (&["selftest", "--device", "sim", "--tuning", "OFF"][..], "did you mean off?"),
        (&["selftest", "--device", "sim", "--tuning", "none"][..], "did you mean off?"),
    ] {
        let refused = program::temper(arguments).output().expect("the program");
        let said = program::stderr(&refused);
        assert!(refused.status.code() == Some(2) && said.contains(words), "{arguments:?}: {said}");
        assert!(refused.stdout.is_empty(), "{arguments:?}");
    }
    let tiny = temper(&["bench", "step", "--ledger", "--shapes", "tiny", "--filter", "lora"]);
    assert!(tiny.contains("MFLOP executed") && !tiny.contains("0.000"), "{tiny}");
    let refused = program::temper(&[&kernels[..], &["--out", "x.json"]].concat()).output().expect("the program");
    assert!(!refused.status.success() && program::stderr(&refused).contains("--out"), "a report that nobody writes");
    assert!(table.contains("lora_attack_step: 1 layers") && table.contains("swiglu_backward_bf16"), "{table}");
    let report: Value = serde_json::from_str(&temper(&[&step[..], &["--json"]].concat())).expect("JSON");
    assert_eq!(
        report["steps"][0]["ledger"]["kernels"]["swiglu_backward_bf16"]["floor_bytes"],
        16384.0 * 14336.0 * 10.0
    );
}
