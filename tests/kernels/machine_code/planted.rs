//! Faults planted in copies of kernels, compiled as the kernels are: the checks of this folder must see each of them.

use std::collections::BTreeMap;
use std::fs;

use super::disassembly::{can_look, compile, disassemble};
use super::hopper::{FORWARD, QUERY};
use super::program::Kernel;

/// The kernels of a file of `kernels/` with one place in it changed.
fn planted(file: &str, place: &str, fault: &str) -> BTreeMap<String, Kernel> {
    compiled(file, place, fault).expect("the planted kernel compiles")
}

/// The same, or what the compiler says.
fn compiled(file: &str, place: &str, fault: &str) -> Result<BTreeMap<String, Kernel>, String> {
    let text = fs::read_to_string(format!("kernels/{file}.cu")).expect("a kernel file");
    assert_eq!(text.matches(place).count(), 1, "{place:?} is in {file}.cu once");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, cubin) = (folder.path().join("planted.cu"), folder.path().join("planted.cubin"));
    fs::write(&source, text.replace(place, fault)).expect("write the source");
    compile(&source, &cubin)?;
    Ok(disassemble(&cubin))
}

#[test]
fn a_wait_that_is_moved_up_is_seen() {
    if can_look() {
        let place = "        soften(work.range.begin + tile * tile_rows);";
        let kernels = planted(FORWARD.file, place, &format!("        wgmma_wait<0>();\n{place}"));
        for head_dim in [64, 128] {
            let kernel = &kernels[&FORWARD.name(head_dim)];
            let exponentials = FORWARD.meanwhile(kernel, "p v", "MUFU.EX2");
            assert!(exponentials < 60, "{exponentials} exponentials, {}", kernel.name);
        }
    }
}

/// ptxas moves the wait up by itself where no branch holds it.
#[test]
fn exponentials_that_ptxas_moves_behind_a_wait_are_seen() {
    if can_look() {
        let place = "if (!all_visible) attention_hide(p, warp_first, key, work.segment.valid, window, 0.0f);";
        let kernels =
            planted(QUERY.file, place, "attention_hide(p, warp_first, key, work.segment.valid, window, 0.0f);");
        let exponentials = QUERY.meanwhile(&kernels[&QUERY.name(128)], "dP", "MUFU.EX2");
        assert!(exponentials < 60, "{exponentials} exponentials");
    }
}

#[test]
fn a_branch_in_a_main_loop_is_seen() {
    if can_look() {
        let place = "        attention_scale(output, shrink);\n        hopper_pack(p, scores);\n    }";
        let fault = place.replace("attention_scale", "if (tile != work.head) attention_scale");
        let kernels = planted(FORWARD.file, place, &fault);
        let kernel = &kernels[&FORWARD.name(128)];
        assert!(!FORWARD.branches(kernel).is_empty(), "{} has its usual branches", kernel.name);
    }
}

#[test]
fn a_descriptor_that_differs_between_threads_is_seen() {
    if can_look() {
        let kernels = planted(FORWARD.file, "hopper_warpgroup() * 64", "threadIdx.x / 128 * 64");
        assert!(FORWARD.descriptor_moves(&kernels[&FORWARD.name(128)]) > 0);
    }
}

/// A kernel whose layout needs other shared memory than launchers give it is no program, on no compiler.
#[test]
fn a_layout_that_launchers_do_not_know_is_refused() {
    if can_look() {
        let error = compiled(FORWARD.file, "    uint64_t query, key_full", "    uint64_t query, spare, key_full");
        assert!(error.is_err_and(|said| said.contains("the launcher gives a block what its layout needs")));
    }
}
