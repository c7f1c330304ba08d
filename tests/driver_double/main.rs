//! The code for NVIDIA devices, executed without one: stand-ins for `libcuda` and `libcublasLt`, compiled here, queue the
//! work, check every call, and let the simulator execute the kernels.
//!
//! It proves the order of calls and what is passed to them, not what a real driver does with it. One test, because the
//! stand-ins are one device with one state. Skipped where a real driver would be found instead.
#![cfg(all(feature = "cuda", target_os = "linux"))]

use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use temper::backend::cuda::ProductShape;
use temper::backend::cuda::nvidia::{Code, EMBEDDED, Nvidia, Unavailable, survey};
use temper::backend::cuda::{Argument, Cuda, Driver, Gemm, Launch, Operand, Tiles};
use temper::bench;
use temper::ops::{Backend, DType, LinearForward, Memory as _, Tensor, WeightedSum};
use temper::random::{Random, Stream};
use temper::selftest;
use temper::tuning::{Key, Tuning, TuningPin, Unit, follow_cuda};

type LaunchFunction = unsafe extern "C" fn(*const c_char, *const c_void, *const *const c_void, u32) -> *const c_char;

unsafe extern "C" {
    fn temper_sim_launch(
        kernel: *const c_char,
        launch: *const c_void,
        arguments: *const *const c_void,
        count: u32,
    ) -> *const c_char;
    fn temper_sim_allocate(bytes: usize) -> *mut c_void;
    fn temper_sim_release(pointer: *mut c_void, bytes: usize);
}

/// As in `cuda.cpp`.
#[repr(C)]
struct Callbacks {
    launch: LaunchFunction,
    allocate: unsafe extern "C" fn(usize) -> *mut c_void,
    release: unsafe extern "C" fn(*mut c_void, usize),
}

/// The two stand-ins, loaded under the names by which the real ones are looked for.
struct Doubles {
    cuda: Library,
    cublaslt: Library,
    folder: tempfile::TempDir,
}

impl Doubles {
    fn load() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let cuda = compile(folder.path(), "cuda.cpp", "libcuda.so.1", None);
        let cublaslt = compile(folder.path(), "cublaslt.cpp", "libcublasLt.so.13", Some(&cuda));
        // SAFETY: our own libraries, which run nothing when they are loaded.
        let open = |path: &Path| unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.expect("a double");
        let doubles = Self { cuda: open(&cuda), cublaslt: open(&cublaslt), folder };
        // SAFETY: the type is the one of the function in `cuda.cpp`.
        let install = unsafe { doubles.cuda.get::<extern "C" fn(Callbacks)>(b"double_install") }.expect("a function");
        install(Callbacks { launch: temper_sim_launch, allocate: temper_sim_allocate, release: temper_sim_release });
        doubles
    }

    fn number<T: Copy>(&self, library: &Library, name: &str) -> T {
        // SAFETY: every caller names a function without parameters that returns a T.
        let function = unsafe { library.get::<extern "C" fn() -> T>(name.as_bytes()) }.expect("a function");
        function()
    }

    /// Everything that was made and not given back.
    fn alive(&self) -> i64 {
        self.number::<i64>(&self.cuda, "double_alive")
            + i64::from(self.number::<i32>(&self.cublaslt, "double_descriptors_alive"))
    }

    fn declare(&self, kernel: &std::ffi::CStr, bytes: &[usize]) {
        type Declare = extern "C" fn(*const c_char, *const usize, usize);
        // SAFETY: the type is the one of the function in `cuda.cpp`.
        let declare = unsafe { self.cuda.get::<Declare>(b"double_declare") }.expect("a function");
        declare(kernel.as_ptr(), bytes.as_ptr(), bytes.len());
    }
}

fn compile(folder: &Path, source: &str, name: &str, with: Option<&Path>) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver_double").join(source);
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let library = folder.join(name);
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra"]).arg(format!("-Wl,-soname,{name}"));
    command.arg(&source).args(with).arg("-o").arg(&library);
    let output = command.output().expect("a C++ compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

#[test]
fn the_nvidia_driver_works_on_a_double() {
    if !matches!(survey().expect("a survey").driver, Err(Unavailable::NoDriver { .. })) {
        return println!("a real driver is here: not replaced by a double");
    }
    if EMBEDDED.toolkit.is_none() {
        return println!("no nvcc when this was built: there is no kernel to load");
    }
    let doubles = Doubles::load();
    let found = survey().expect("a survey");
    assert_eq!(found.driver, Ok((13, 0)));
    assert_eq!(found.devices.len(), 1);
    assert_eq!(found.devices[0].1, Ok(Code::Ready("90a")));
    assert_eq!(found.products.as_deref(), Some("cuBLASLt 13.0.2"));
    assert!(Nvidia::new(1).err().expect("no second GPU").to_string().contains("the driver sees 1"));
    assert_eq!(doubles.alive(), 0);
    {
        let device = Arc::new(Nvidia::new(0).expect("the double"));
        assert_eq!((device.device().compute_capability, device.device().multiprocessors), ((9, 0), 4));
        memory_moves_in_order(&device);
        uploads_do_not_depend_on_the_callers_memory(&device);
        kernels_run(&doubles, &device);
        graphs_replay(&device);
        products_agree_with_a_naive_loop(&doubles, &device);
        events_measure(&device);
        streams_wait(&device);
        tensor_maps_are_encoded(&device);
        memory_runs_out_with_a_remedy(&device);
        from_another_thread(&device);
        streams_are_adopted(&doubles);
    }
    assert_eq!(doubles.alive(), 0, "something was not given back");
    the_backend_runs(&doubles);
    assert_eq!(doubles.alive(), 0, "something was not given back");
    a_product_that_the_library_refuses_is_an_error(&doubles);
    assert_eq!(doubles.alive(), 0, "something was not given back");
    the_fastest_right_algorithm_is_chosen(&doubles);
    assert_eq!(doubles.alive(), 0, "something was not given back");
    assert!(doubles.folder.path().exists());
}

/// Device memory with a name for the tests.
struct Memory<'a>(&'a Nvidia, u64, usize);

impl<'a> Memory<'a> {
    fn new(device: &'a Nvidia, values: &[f32]) -> Self {
        let memory = Self(device, device.allocate("values", values.len() * 4).expect("memory"), values.len());
        // SAFETY: the memory has room for the values.
        unsafe { device.upload(memory.1, bytemuck::cast_slice(values)) }.expect("an upload");
        memory
    }

    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0f32; self.2];
        // SAFETY: the memory holds as many values.
        unsafe { self.0.download(self.1, bytemuck::cast_slice_mut(&mut values)) }.expect("a download");
        values
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, and released once.
        unsafe { self.0.release(self.1, self.2 * 4) }
    }
}

fn memory_moves_in_order(device: &Nvidia) {
    let a = Memory::new(device, &[1.0, 2.0, 3.0, 4.0]);
    let b = Memory::new(device, &[0.0; 4]);
    // SAFETY: the ranges are inside.
    unsafe {
        device.copy(a.1 + 4, b.1, 12).expect("a copy");
        device.clear(a.1, 8).expect("a clear");
        device.copy(a.1, b.1 + 12, 4).expect("a copy");
        device.copy(0, 0, 0).expect("nothing");
        assert!(device.copy(a.1, b.1, 32).is_err(), "beyond the end");
    }
    assert_eq!(b.values(), [2.0, 3.0, 4.0, 0.0]);
    assert_eq!(a.values(), [0.0, 0.0, 3.0, 4.0]);
}

/// More than all of the staging memory, from a buffer that is overwritten at once: what arrives is what was there.
fn uploads_do_not_depend_on_the_callers_memory(device: &Nvidia) {
    let len = 6_000_001;
    let memory = Memory(device, device.allocate("many", len * 4).expect("memory"), len);
    let mut values: Vec<f32> = (0..len).map(|i| i as f32).collect();
    let expected = values.clone();
    // SAFETY: the memory has room for the values.
    unsafe { device.upload(memory.1, bytemuck::cast_slice(&values)) }.expect("an upload");
    values.fill(-1.0);
    for index in 0..20u32 {
        let small = [index as f32; 3];
        // SAFETY: inside.
        unsafe { device.upload(memory.1 + 12 * u64::from(index), bytemuck::cast_slice(&small)) }.expect("an upload");
    }
    let found = memory.values();
    assert!((0..60).all(|i| found[i] == (i / 3) as f32));
    assert!(found[60..] == expected[60..]);
}

const SUM_OF_SQUARES: Launch = Launch { kernel: "weighted_sum_f32", grid: [1; 3], block: 32, shared_bytes: 256 };

/// The arguments that add scale · Σ x² to the first element of y.
fn sum_of_squares(x: &Memory, scale: f32, y: &Memory) -> [Argument; 5] {
    let (x, len) = (Argument::Pointer(x.1), Argument::U64(x.2 as u64));
    [x, x, Argument::F32(scale), Argument::Pointer(y.1), len]
}

fn kernels_run(doubles: &Doubles, device: &Nvidia) {
    doubles.declare(c"weighted_sum_f32", &[8, 8, 4, 8, 8]);
    let x = Memory::new(device, &[1.0, -2.0, 0.5]);
    let y = Memory::new(device, &[10.0; 3]);
    let launch = SUM_OF_SQUARES;
    let arguments = sum_of_squares(&x, 2.0, &y);
    // SAFETY: the kernel's parameters, and memory of that many elements.
    unsafe { device.launch(&launch, &arguments) }.expect("a launch");
    assert_eq!(y.values(), [20.5, 10.0, 10.0]);

    // SAFETY: these are refused before anything is launched.
    let refusals = unsafe {
        [
            device.launch(&launch, &arguments[..4]),
            device.launch(&Launch { kernel: "weighted_sum_f64", ..launch }, &arguments),
            device.launch(&Launch { shared_bytes: 1 << 20, ..launch }, &arguments),
            device.launch_with(&launch, [1; 3], &[]),
        ]
    };
    let words = ["[8, 4, 8, 8]", "`weighted_sum_f64` is not in this binary", "1048576 shared bytes", "[]"];
    for (refusal, words) in refusals.into_iter().zip(words) {
        let error = refusal.expect_err("a refusal").to_string();
        assert!(error.contains(words) || error.contains("bytes, but was given"), "{error}");
    }
    assert_eq!(y.values(), [20.5, 10.0, 10.0]);
}

fn graphs_replay(device: &Arc<Nvidia>) {
    let x = Memory::new(device, &[1.0, 2.0, 3.0]);
    let y = Memory::new(device, &[0.0; 3]);
    let launch = SUM_OF_SQUARES;
    let arguments = sum_of_squares(&x, 1.0, &y);
    let dropped = Memory::new(device, &[0.0; 3]);
    device.begin_recording().expect("a recording");
    // SAFETY: as in `kernels_run`.
    unsafe { device.launch(&launch, &arguments) }.expect("a recorded launch");
    drop(dropped); // released when the recording ends, not with every replay
    assert!(device.allocate("inside", 16).is_err() && device.begin_recording().is_err());
    assert!(device.synchronize().is_err() && device.record_event().is_err());
    // SAFETY: inside the memory.
    assert!(unsafe { device.upload(x.1, &[0; 4]) }.is_err());
    let graph = device.end_recording().expect("a graph");
    assert_eq!(y.values(), [0.0; 3], "recorded, not executed");
    for _ in 0..3 {
        device.replay(graph).expect("a replay");
    }
    assert_eq!(y.values(), [42.0, 0.0, 0.0]);
    device.forget(graph);
    assert!(device.replay(graph).is_err());
    device.allocate("after", 16).map(|pointer| unsafe { device.release(pointer, 16) }).expect("capturing has ended");
}

/// All four layouts, padded rows, f32 and bf16, added and not; one question to the heuristic for each description.
fn products_agree_with_a_naive_loop(doubles: &Doubles, device: &Nvidia) {
    let mut random = Random::new(3, Stream::Demo, 0, 0);
    let m = 5;
    let n = 7;
    let k = 6;
    let padding = 3;
    let asked = || doubles.number::<i32>(&doubles.cublaslt, "double_asked");
    for case in 0..16 {
        let ta = case & 1 != 0;
        let tb = case & 2 != 0;
        let accumulate = case & 4 != 0;
        let wide = case & 8 != 0;
        let extent = |rows: usize, columns: usize, transposed: bool| {
            if transposed { (columns, rows + padding) } else { (rows, columns + padding) }
        };
        let (a_rows, a_leading) = extent(m, k, ta);
        let (b_rows, b_leading) = extent(k, n, tb);
        let mut normals = |len: usize| -> Vec<f32> { (0..len).map(|_| bf16(random.normal() as f32)).collect() };
        let a = normals(a_rows * a_leading);
        let b = normals(b_rows * b_leading);
        let c = if accumulate { normals(m * (n + padding)) } else { vec![f32::NAN; m * (n + padding)] };
        let store =
            |values: &[f32]| if wide { Memory::new(device, values) } else { Memory::new(device, &pack(values)) };
        let on_a = store(&a);
        let on_b = store(&b);
        let on_c = Memory::new(device, &c);
        let input = if wide { DType::F32 } else { DType::Bf16 };
        let gemm = Gemm {
            m,
            n,
            k,
            a: Operand { pointer: on_a.1, leading: a_leading, transposed: ta },
            b: Operand { pointer: on_b.1, leading: b_leading, transposed: tb },
            c: on_c.1,
            c_leading: n + padding,
            input,
            output: DType::F32,
            alpha: 0.5,
            beta: f32::from(u8::from(accumulate)),
        };
        let before = asked();
        // SAFETY: the operands have the extents that are named.
        assert!(unsafe { device.gemm(&gemm) }.expect("a product"));
        let found = on_c.values();
        for row in 0..m {
            for column in 0..n {
                let term = |i: usize| {
                    let left = if ta { a[i * a_leading + row] } else { a[row * a_leading + i] };
                    left * if tb { b[column * b_leading + i] } else { b[i * b_leading + column] }
                };
                let place = row * (n + padding) + column;
                let sum: f64 = (0..k).map(|i| f64::from(term(i))).sum();
                let expected = 0.5 * sum + if accumulate { f64::from(c[place]) } else { 0.0 };
                assert!((f64::from(found[place]) - expected).abs() < 1e-5, "case {case}: {} {expected}", found[place]);
            }
        }
        assert_eq!(asked() - before, 1, "case {case}");
        // SAFETY: as above.
        assert!(unsafe { device.gemm(&gemm) }.expect("a product"));
        assert_eq!(asked() - before, 1, "the algorithm is asked for once");
        let none = Gemm { k: 0, ..gemm };
        // SAFETY: as above.
        assert!(!unsafe { device.gemm(&none) }.expect("left to our own kernel"));
    }
}

fn bf16(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xffff_0000)
}

/// Values as bf16, two in each 32-bit word.
fn pack(values: &[f32]) -> Vec<f32> {
    let high = |value: &f32| value.to_bits() >> 16;
    values.chunks(2).map(|pair| f32::from_bits(high(&pair[0]) | pair.get(1).map_or(0, high) << 16)).collect()
}

fn events_measure(device: &Nvidia) {
    let [start, end] = [(); 2].map(|()| device.record_event().expect("an event"));
    assert!(device.elapsed_milliseconds(start, end).expect("a time") > 0.0);
    assert!(device.elapsed_milliseconds(start, end).is_err(), "both were given back");
    let again = device.record_event().expect("an event");
    assert_eq!(device.elapsed_milliseconds(again, again).expect("a time"), 0.0);
}

/// A copy in the second stream sees what the first one queued before.
fn streams_wait(device: &Nvidia) {
    let second = device.second_stream().expect("a stream");
    let memory = Memory::new(device, &[7.0; 4]);
    let pinned = second.allocate_host("parked", 16).expect("pinned memory");
    // SAFETY: 16 bytes of main memory, aligned for f32, that no copy is under way to when they are looked at.
    let parked = || unsafe { *(pinned as *mut [f32; 4]) };
    assert_eq!(parked(), [0.0; 4]);
    second.wait_for(device).expect("a wait");
    // SAFETY: the memory is alive until both streams are waited for.
    unsafe { second.park(memory.1, pinned, 16) }.expect("a copy to main memory");
    second.synchronize().expect("a wait");
    assert_eq!(parked(), [7.0; 4]);
    // SAFETY: as above, and nobody else looks at it.
    unsafe { *(pinned as *mut [f32; 4]) = [0.0; 4] };
    // SAFETY: as for the first copy.
    unsafe { second.fetch(pinned, memory.1, 16) }.expect("a copy from main memory");
    second.synchronize().expect("a wait");
    assert_eq!(memory.values(), [0.0; 4]);
    // SAFETY: allocated above with this size, and not used again.
    unsafe { second.release_host(pinned, 16) };
}

fn tensor_maps_are_encoded(device: &Nvidia) {
    let pointer = device.allocate("tensor", 4096).expect("memory");
    let sizes = &[64u64, 8][..];
    let strides = &[128u64][..];
    let tile = &[64u32, 8][..];
    let tiles = Tiles { dtype: DType::Bf16, address: pointer, sizes, strides, tile, swizzle: 128 };
    let map = device.tensor_map(&tiles).expect("a map");
    assert_eq!(map.0[..6], [pointer, 64, 8, 128, 64 + (8 << 32), 3]);
    assert!(device.tensor_map(&Tiles { strides: &[130], ..tiles }).is_err());
    let launch = Launch { kernel: "weighted_sum_f32", grid: [1; 3], block: 32, shared_bytes: 0 };
    // SAFETY: refused before it is launched: the kernel takes no map.
    let refused = unsafe { device.launch_with(&launch, [2, 1, 1], &[Argument::TensorMap(map)]) };
    assert!(refused.expect_err("a misfit").to_string().contains("[128]"));
    // SAFETY: allocated above.
    unsafe { device.release(pointer, 4096) };
}

fn memory_runs_out_with_a_remedy(device: &Nvidia) {
    let error = device.allocate("the weights", 2 << 30).expect_err("too much");
    assert_eq!(error.exit_code(), 5);
    let text = error.to_string();
    assert!(text.contains("the weights on double needs 2147483648 bytes but 12345 are available"), "{text}");
}

/// Each call makes the context current where it is made.
fn from_another_thread(device: &Arc<Nvidia>) {
    let device = Arc::clone(device);
    let other = std::thread::spawn(move || Memory::new(&device, &[5.0]).values());
    assert_eq!(other.join().expect("no panic"), [5.0]);
}

fn streams_are_adopted(doubles: &Doubles) {
    let context = doubles.number::<*mut c_void>(&doubles.cuda, "double_context");
    let before = doubles.alive();
    {
        // SAFETY: the double's own context, and its default stream.
        let adopted = unsafe { Nvidia::adopt_stream(std::ptr::null_mut(), context) }.expect("adoption");
        assert_eq!(Memory::new(&adopted, &[1.5]).values(), [1.5]);
    }
    assert_eq!(doubles.alive(), before);
    let mut foreign = 0u32;
    // SAFETY: the double compares addresses and looks at nothing.
    let refused = unsafe { Nvidia::adopt_stream(std::ptr::null_mut(), std::ptr::from_mut(&mut foreign).cast()) };
    let error = refused.err().expect("a foreign context").to_string();
    assert!(error.contains("primary context of GPU 0"), "{error}");
    assert_eq!(doubles.alive(), before);
}

/// The whole backend, through the handle that models use.
fn the_backend_runs(doubles: &Doubles) {
    let cuda = Cuda::nvidia(0, DType::Bf16).expect("the double");
    let text = cuda.description();
    assert!(text.contains("double") && text.contains("cuBLASLt 13.0.2"), "{text}");
    assert!(Cuda::nvidia(0, DType::U32).is_err());
    let mut buffer = cuda.zeros("values", 4, DType::F32).expect("memory");
    cuda.upload_f32(&mut buffer, 1, &[1.0, 2.0]).expect("an upload");
    assert_eq!(cuda.download_f32(&buffer, 0, 4).expect("a download"), [0.0, 1.0, 2.0, 0.0]);
    assert!(doubles.alive() > 0);

    // y = x wᵀ by the library, y += 2 Σ x² by a kernel.
    let tensor = |rows, cols, values: &[f32]| Tensor::from_f32(&cuda, "values", rows, cols, values).expect("memory");
    let x = tensor(1, 2, &[1.0, 2.0]);
    let w = tensor(3, 2, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    let mut y = tensor(1, 3, &[f32::NAN; 3]);
    cuda.run(LinearForward { x: x.view(), w: w.view(), y: y.view_mut() }).expect("a product");
    assert_eq!(y.to_vec(&cuda).expect("a download"), [1.0, 2.0, 3.0]);
    let f32_on_device = |values: &[f32]| {
        let mut tensor = Tensor::zeros(&cuda, "values", 1, values.len(), DType::F32).expect("memory");
        cuda.upload_f32(tensor.buffer_mut(), 0, values).expect("an upload");
        tensor
    };
    let x = f32_on_device(&[1.0, 2.0, 3.0, 4.0, 5.0]);
    let mut y = f32_on_device(&[1.0]);
    let sum = WeightedSum { a: x.view(), b: x.view(), scale: 2.0, out: y.view_mut() };
    cuda.run(sum).expect("a sum");
    assert_eq!(y.to_vec(&cuda).expect("a download"), [111.0]);
}

/// The kernels of our own products, with the sizes of their parameters.
fn declare_own_products(doubles: &Doubles) {
    for kernel in [c"gemm_nt_bf16", c"gemm_nt_bf16_unaligned", c"gemm_nt_f32"] {
        doubles.declare(kernel, &[4, 4, 4, 8, 8, 8, 8, 8, 8, 4, 4, 8, 4]);
    }
}

/// The library has every product of the tiny model but one. Its row of the bench fails, and so does the one of the
/// self-test, though both results are right; whatever else they measure does not.
fn a_product_that_the_library_refuses_is_an_error(doubles: &Doubles) {
    declare_own_products(doubles);
    let cuda = Cuda::nvidia(0, DType::Bf16).expect("the double");
    let mut options = bench::Options::new(&cuda, bench::ShapesName::Tiny);
    options.effort = bench::Effort::simulated();
    options.filter = Some("linear_forward/".into());
    // SAFETY: the type is the one of the function in `cublaslt.cpp`.
    let refuse = unsafe { doubles.cublaslt.get::<extern "C" fn(u64, u64)>(b"double_refuse") }.expect("a function");
    refuse(320, 48);
    let report = bench::kernels(&cuda, &options, &mut |_| {}).expect("a report");
    let [failed] = &report.not_run[..] else { panic!("{:?}", report.not_run) };
    assert!(failed.name == "linear_forward/gate_up" && !failed.out_of_memory, "{failed:?}");
    assert!(failed.reason.contains("own kernel: a product of 48 x 320 x 128 (nt"), "{failed:?}");
    assert_eq!(report.rows.len(), 7, "three layers by the library, four by our own kernel");

    let options = selftest::Options { seed: 1, full: false, only: "linear_forward".into() };
    let failures = || -> Vec<selftest::Row> {
        // A device asks for an algorithm once.
        let fresh = Cuda::nvidia(0, DType::Bf16).expect("the double");
        let rows = selftest::run(&fresh, &options, &mut |_| {}).expect("rows");
        rows.into_iter().filter(|row| !row.ok).collect()
    };
    // One whose rows are no whole vectors may fall back, one of a model's kind may not.
    refuse(65, 130);
    let failed = failures();
    assert!(failed.is_empty(), "{failed:?}");
    refuse(136, 65);
    let failed = failures();
    assert_eq!(failed.len(), 2, "once in each precision: {failed:?}");
    for row in failed {
        assert!(row.shape.starts_with("65 x 136 x 264, library"), "{row:?}");
        assert!(row.problem.as_ref().is_some_and(|problem| problem.contains("left to our own kernel")), "{row:?}");
    }
    refuse(0, 0);
}

/// Of five proposals that keep the rules, one gives other bits each time and one leaves a term out: they are refused, although
/// they are the fastest. The third of the others takes less time than the first, and what follows the file multiplies by it;
/// what does not, by the first.
fn the_fastest_right_algorithm_is_chosen(doubles: &Doubles) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tuning.json");
    let shape: ProductShape = "5x8x16 nt f32 f32".parse().expect("a shape");
    let added: ProductShape = "8x16x5 tn bf16 f32 +=".parse().expect("a shape");
    let last = |cuda: Cuda| {
        let tensor = |rows, cols, values| Tensor::from_f32(&cuda, "values", rows, cols, values).expect("memory");
        let x = tensor(5, 16, &[1.0; 80]);
        let w = tensor(8, 16, &[1.0; 128]);
        let mut y = tensor(5, 8, &[f32::NAN; 40]);
        cuda.run(LinearForward { x: x.view(), w: w.view(), y: y.view_mut() }).expect("a product");
        assert_eq!(y.to_vec(&cuda).expect("a download"), [16.0; 40]);
        doubles.number::<i32>(&doubles.cublaslt, "double_last_algorithm")
    };
    let fresh = || Cuda::nvidia(0, DType::Bf16).expect("the double");
    let key = {
        let cuda = fresh();
        let mut measured = Vec::new();
        let mut tuner = bench::Tuner::new(&cuda, &path).expect("a tuner");
        tuner.products(&[shape, added], &mut |tuned| measured.push(tuned.clone())).expect("choices");
        for tuned in &measured {
            assert_eq!((tuned.candidates, tuned.chosen, tuned.refused.len()), (5, 1, 2), "{tuned:?}");
            assert!(
                tuned.refused[0].contains("other bits") && tuned.refused[1].contains("from the first"),
                "{tuned:?}"
            );
            assert!(tuned.first > Some(tuned.best), "{tuned:?}");
        }
        assert_eq!(measured.len(), 2);
        tuner.products(&[shape, added], &mut |_| panic!("measured twice")).expect("nothing");
        Key::of(&cuda)
    };
    let tuning = Tuning::read(&path).expect("a file");
    assert_eq!((tuning.unit, tuning.key.driver.as_deref()), (Unit::Milliseconds, Some("13.0")));
    assert_eq!((&tuning.key, tuning.key.library.as_deref()), (&key, Some("cuBLASLt 13.0.2")));

    let pin = Some(TuningPin::File(path.clone()));
    let followed = |pin: Option<&TuningPin>| follow_cuda(fresh(), pin).expect("a device");
    assert_eq!(last(fresh()), 8, "the library's own choice");
    let (cuda, said) = followed(pin.as_ref());
    assert!(said.tuned && said.text.contains("2 products"), "{said:?}");
    assert_eq!(last(cuda), 6);
    assert_eq!(last(followed(Some(&TuningPin::Off)).0), 8);

    // Another driver: not used, and said.
    let other = Tuning { key: Key { driver: Some("12.9".into()), ..key.clone() }, ..tuning.clone() };
    other.write(&path).expect("the file");
    let (cuda, said) = followed(pin.as_ref());
    assert!(!said.tuned && said.text.contains("driver 12.9, and here it is 13.0"), "{said:?}");
    assert_eq!(last(cuda), 8);
    // Bytes that are no algorithm of this library are refused before anything is multiplied by them.
    let mut broken = tuning.clone();
    broken.products.values_mut().for_each(|entry| entry.algorithm = "01".repeat(64));
    broken.write(&path).expect("the file");
    let error = follow_cuda(fresh(), pin.as_ref()).err().expect("a refusal").to_string();
    assert!(error.contains("cannot do it by the algorithm that was chosen"), "{error}");
}
