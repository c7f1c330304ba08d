//! Every function of `ptx*.cuh` is compiled for sm_90a, used by a kernel or not: `wrappers.cu` calls each of them at every
//! width and in every form.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::disassembly::{can_look, compile, disassemble};

const PROBE: &str = "tests/kernels/machine_code/wrappers.cu";

/// The device functions that headers define, by name.
fn functions(header: &str) -> BTreeSet<&str> {
    let name = |line: &str| line.split_once('(').map_or("", |(before, _)| before).len();
    let lines = header.lines().filter(|line| line.starts_with("__device__ __forceinline__ "));
    lines.map(|line| line[..name(line)].rsplit([' ', '*']).next().expect("a name before the parameters")).collect()
}

/// Those that a program does not call, with or without template arguments.
fn uncalled<'a>(functions: &BTreeSet<&'a str>, program: &str) -> Vec<&'a str> {
    let mut words = BTreeSet::new();
    for part in program.split(['(', '<']) {
        words.extend(part.rsplit(|letter: char| !letter.is_alphanumeric() && letter != '_').next());
    }
    functions.iter().filter(|name| !words.contains(*name)).copied().collect()
}

fn headers() -> String {
    let files = ["ptx.cuh", "ptx_hopper.cuh", "ptx_wgmma.cuh"];
    files.map(|file| fs::read_to_string(format!("kernels/{file}")).expect("a header")).concat()
}

/// A function that is added to a header has to be added to the probe.
#[test]
fn the_probe_calls_every_function_of_the_ptx_headers() {
    let probe = fs::read_to_string(PROBE).expect("the probe");
    let headers = headers();
    let found = functions(&headers);
    assert!(found.contains("tma_load") && found.contains("wgmma_registers") && found.contains("shared_memory"));
    assert_eq!(uncalled(&found, &probe), [""; 0], "{PROBE} does not call them");
    let added = headers.clone() + "\n__device__ __forceinline__ void tma_multicast(void* tile TEMPER_SITE) {\n}\n";
    assert_eq!(uncalled(&functions(&added), &probe), ["tma_multicast"]);
}

/// All 192 products (every n from 8 to 256; a in registers or in shared memory in both orders, b in both orders), and
/// every copy of the copy engine.
#[test]
fn the_probe_compiles_and_holds_every_product_and_every_copy() {
    if !can_look() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cubin = folder.path().join("wrappers.cubin");
    compile(Path::new(PROBE), &cubin).expect("every wrapper assembles");
    let mut products = BTreeSet::new();
    let mut copies = BTreeSet::new();
    for instruction in disassemble(&cubin).values().flat_map(|kernel| &kernel.instructions) {
        if instruction.is("HGMMA") {
            let registers = instruction.operands.split(", ").nth(1).is_some_and(|left| left.starts_with('R'));
            let transposed = ["tnspA", "tnspB"].map(|name| instruction.operands.contains(name));
            products.insert((instruction.opcode.clone(), registers, transposed));
        }
        copies.insert(instruction.opcode.clone());
    }
    assert_eq!(products.len(), 32 * (4 + 2));
    for rank in ["2D", "3D", "4D"] {
        for copy in [format!("UTMALDG.{rank}"), format!("UTMASTG.{rank}"), format!("UTMAREDG.{rank}.ADD")] {
            assert!(copies.contains(&copy), "no {copy}");
        }
    }
    for copy in ["UBLKCP.S.G", "UBLKCP.G.S", "UBLKRED.G.S.ADD.F32.RN", "UTMACCTL.PF"] {
        assert!(copies.contains(copy), "no {copy}");
    }
}
