//! The self-test: that it is green in the simulator, that it launches every kernel, and that it sees what is wrong.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use temper::backend::cuda::{Argument, Cuda, DeviceInfo, Driver, Event, Gemm, Graph, Launch, TensorMap, Tiles};
use temper::ops::DType;
use temper::selftest::{self, Options, Row, compare};
use temper::{Error, Result};

use crate::program::{self, stderr, stdout};
use crate::simulated::simulated_kernels;

/// A simulated device with a fault, which also writes down what is launched.
struct Faulty {
    device: Cuda,
    kernel: &'static str,
    fault: Fault,
    launches: AtomicUsize,
    launched: Mutex<BTreeSet<String>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The launch fails.
    Refused,
    /// Nothing happens.
    NotRun,
    /// The lowest bit of the last output's first element is another one in every second launch.
    Unstable,
}

impl Faulty {
    fn new(kernel: &'static str, fault: Fault) -> Arc<Self> {
        Self::of_capability((8, 0), kernel, fault)
    }

    fn of_capability(capability: (u32, u32), kernel: &'static str, fault: Fault) -> Arc<Self> {
        let device = Cuda::simulated_as(DType::F32, capability, 0).expect("a simulated device");
        Arc::new(Self { device, kernel, fault, launches: AtomicUsize::new(0), launched: Mutex::default() })
    }

    fn inner(&self) -> &dyn Driver {
        self.device.driver()
    }

    /// Changes the lowest bit of what the fourth argument points to.
    fn flip(&self, arguments: &[Argument]) -> Result<()> {
        let Argument::Pointer(address) = arguments[3] else { panic!("not an address") };
        let mut byte = [0];
        // SAFETY: an output of the launch.
        unsafe { self.inner().download(address, &mut byte) }?;
        byte[0] ^= 1;
        // SAFETY: as above.
        unsafe { self.inner().upload(address, &byte) }
    }
}

impl Driver for Faulty {
    fn device(&self) -> &DeviceInfo {
        self.inner().device()
    }
    fn allocate(&self, name: &str, bytes: usize) -> Result<u64> {
        self.inner().allocate(name, bytes)
    }
    unsafe fn release(&self, pointer: u64, bytes: usize) {
        // SAFETY: passed on to the caller, as everywhere below.
        unsafe { self.inner().release(pointer, bytes) }
    }
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner().upload(to, from) }
    }
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner().download(from, to) }
    }
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner().copy(from, to, bytes) }
    }
    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner().clear(to, bytes) }
    }
    fn allocate_host(&self, name: &str, bytes: usize) -> Result<u64> {
        self.inner().allocate_host(name, bytes)
    }
    unsafe fn release_host(&self, pointer: u64, bytes: usize) {
        // SAFETY: as above.
        unsafe { self.inner().release_host(pointer, bytes) }
    }
    unsafe fn park(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner().park(from, to, bytes) }
    }
    unsafe fn fetch(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner().fetch(from, to, bytes) }
    }
    fn tensor_map(&self, tiles: &Tiles) -> Result<TensorMap> {
        self.inner().tensor_map(tiles)
    }
    unsafe fn launch(&self, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        self.launched.lock().unwrap().insert(launch.kernel.to_string());
        let faulty = launch.kernel == self.kernel;
        match self.fault {
            Fault::Refused if faulty => return Err(Error::Device("refused for a test".into())),
            Fault::NotRun if faulty => return Ok(()),
            _ => {}
        }
        // SAFETY: as above.
        unsafe { self.inner().launch(launch, arguments) }?;
        if faulty && self.fault == Fault::Unstable && self.launches.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            self.flip(arguments)?;
        }
        Ok(())
    }
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<bool> {
        // SAFETY: as above.
        unsafe { self.inner().gemm(gemm) }
    }
    fn gemm_library(&self) -> Option<String> {
        self.inner().gemm_library()
    }
    fn synchronize(&self) -> Result<()> {
        self.inner().synchronize()
    }
    fn begin_recording(&self) -> Result<()> {
        self.inner().begin_recording()
    }
    fn end_recording(&self) -> Result<Graph> {
        self.inner().end_recording()
    }
    fn replay(&self, graph: Graph) -> Result<()> {
        self.inner().replay(graph)
    }
    fn forget(&self, graph: Graph) {
        self.inner().forget(graph);
    }
    fn record_event(&self) -> Result<Event> {
        self.inner().record_event()
    }
    fn elapsed_milliseconds(&self, start: Event, end: Event) -> Result<f32> {
        self.inner().elapsed_milliseconds(start, end)
    }
}

/// The rows of operations whose names contain `only`, on a device with a fault in `kernel`.
fn with_fault(kernel: &'static str, fault: Fault, only: &str) -> Vec<Row> {
    let cuda = Cuda::new(Faulty::new(kernel, fault), DType::F32).unwrap();
    let options = Options { seed: 3, full: false, only: only.into() };
    selftest::run(&cuda, &options, &mut |_| ()).unwrap()
}

fn temper(arguments: &[&str]) -> std::process::Output {
    program::run(&mut program::temper(arguments))
}

/// All rows are green in both precisions, and no kernel was left out.
#[test]
fn every_kernel_is_tested_and_right() {
    let driver = Faulty::new("", Fault::None);
    let cuda = Cuda::new(driver.clone(), DType::F32).unwrap();
    let mut shown = 0;
    let rows = selftest::run(&cuda, &Options { seed: 7, ..Options::default() }, &mut |_| shown += 1).unwrap();
    let wrong: Vec<&Row> = rows.iter().filter(|row| !row.ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(shown, rows.len());
    assert!(["bf16", "f32"].iter().all(|dtype| rows.iter().filter(|row| row.dtype == *dtype).count() > 200));
    let mut launched = driver.launched.lock().unwrap().clone();
    launched.extend(hopper());
    let missing: Vec<String> = simulated_kernels().difference(&launched).cloned().collect();
    assert!(missing.is_empty(), "no case launches {missing:?}");
}

/// What a device of compute capability 9.0 launches for attention, which has kernels of its own there; all rows are green.
fn hopper() -> BTreeSet<String> {
    let driver = Faulty::of_capability((9, 0), "", Fault::None);
    let cuda = Cuda::new(driver.clone(), DType::F32).unwrap();
    let options = Options { seed: 7, full: false, only: "attention".into() };
    let rows = selftest::run(&cuda, &options, &mut |_| ()).unwrap();
    assert!(rows.len() > 40 && rows.iter().all(|row| row.ok), "{rows:#?}");
    let launched = driver.launched.lock().unwrap();
    launched.clone()
}

/// A family without biases and norms of heads does not pay for those of others: an outer step of a Llama launches no kernel
/// of theirs.
#[test]
fn a_llama_launches_no_kernel_of_another_family() {
    let driver = Faulty::new("", Fault::None);
    let cuda = Cuda::new(driver.clone(), DType::F32).unwrap();
    let rows = selftest::run(&cuda, &Options { only: "outer step".into(), ..Options::default() }, &mut |_| ()).unwrap();
    let launched = driver.launched.lock().unwrap();
    let of_others = ["add_bias", "bias_sums", "head_norm"];
    assert!(rows.iter().any(|row| row.ok) && launched.contains("rope_bf16"), "{launched:?}");
    assert!(!launched.iter().any(|kernel| of_others.iter().any(|stem| kernel.starts_with(stem))), "{launched:?}");
}

/// A launch that fails is a red row of its operation, and the rest goes on.
#[test]
fn a_launch_that_fails_is_one_red_row() {
    let rows = with_fault("swiglu_forward_bf16", Fault::Refused, "swiglu");
    let (red, green): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| !row.ok);
    assert_eq!(red.len(), 3, "{red:#?}");
    assert!(red.iter().all(|row| row.operation == "swiglu_forward" && row.dtype == "bf16"));
    assert!(red.iter().all(|row| row.problem.as_ref().is_some_and(|problem| problem.contains("refused for a test"))));
    assert!(green.iter().any(|row| row.operation == "swiglu_backward" && row.dtype == "bf16"));
}

/// A kernel that does nothing leaves NaN behind, or what was there before.
#[test]
fn a_kernel_that_does_nothing_is_seen() {
    for (kernel, only) in
        [("swiglu_forward_f32", "swiglu_forward"), ("weighted_sum_f32", "weighted_sum"), ("rope_f32", "rope")]
    {
        let rows = with_fault(kernel, Fault::NotRun, only);
        let red = rows.iter().filter(|row| row.dtype == "f32" && !row.ok).count();
        assert_eq!(red, rows.iter().filter(|row| row.dtype == "f32").count(), "{kernel}: {rows:#?}");
    }
}

/// One bit that differs between two runs is seen, though it is far within every bound.
#[test]
fn other_bits_in_the_second_run_are_seen() {
    let rows = with_fault("weighted_sum_f32", Fault::Unstable, "weighted_sum");
    let unstable = rows.iter().filter(|row| row.problem.as_ref().is_some_and(|p| p.contains("other bits")));
    // Every case, and the row that counts them.
    assert_eq!(unstable.count(), 2 * 3 + 1, "{rows:#?}");
}

/// The comparison itself: NaN, infinities, one wrong element among many, a small error everywhere.
#[test]
fn the_comparison_sees_wrong_numbers() {
    let expected: Vec<f64> = (0..10_000).map(|i| (f64::from(i) * 0.7).sin()).collect();
    let changed = |change: &dyn Fn(&mut Vec<f64>)| {
        let mut found = expected.clone();
        change(&mut found);
        compare(&found, &expected)
    };
    assert_eq!(changed(&|_| ()).problem(0.0), None);
    assert!(changed(&|found| found[77] = f64::NAN).problem(1e9).is_some());
    assert!(changed(&|found| found[77] = f64::INFINITY).problem(1e9).is_some());
    // A single element that is off by a fifth of its size changes the norm by 0.2 %.
    let one = changed(&|found| found[2] *= 1.2);
    assert!(one.error < 1e-2 && one.problem(1e-2).is_some(), "{one:?}");
    let all = changed(&|found| found.iter_mut().for_each(|x| *x *= 1.002));
    assert!((all.error - 2e-3).abs() < 1e-9 && all.problem(1.9e-3).is_some() && all.problem(2.1e-3).is_none());
    // Expected infinities must be there; a zero is no number to divide by.
    let least = f64::NEG_INFINITY;
    assert_eq!(compare(&[1.0, least], &[1.0, least]).problem(0.0), None);
    assert!(compare(&[1.0, 0.0], &[1.0, least]).problem(1e9).is_some());
    assert!(compare(&[1e-9], &[0.0]).problem(1.0).is_some());
    assert_eq!(compare(&[0.0], &[0.0]).problem(0.0), None);
}

/// The command: a document on stdout, an exit code, the seed that repeats it.
#[test]
fn the_command_prints_rows_and_an_exit_code() {
    let output = temper(&["selftest", "--device", "sim", "--seed", "5", "--only", "swiglu", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["ok"], &report["seed"], &report["failed"]), (&true.into(), &5.into(), &0.into()));
    assert!(report["device"]["name"].as_str().unwrap().contains("simulated"));
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.len() == 13 && rows[0]["operation"] == "swiglu_forward" && rows[0]["error"].is_number());

    let output = temper(&["selftest", "--device", "sim", "--only", "swiglu"]);
    let table = stdout(&output);
    assert!(table.starts_with("operation") && table.ends_with(" s\n") && table.contains("13 of 13 rows ok"), "{table}");
    assert!(stderr(&output).contains("seed"));
}

/// Where there is no such GPU: one line that says what to do, and exit code 1.
#[test]
fn without_a_gpu_it_says_so() {
    let output = temper(&["selftest", "--device", "cuda:99"]);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.lines().count() == 1 && message.contains("--device sim"), "{message}");
    let output = temper(&["selftest", "--device", "sim", "--only", "no such operation"]);
    assert_eq!(output.status.code(), Some(2));
}
