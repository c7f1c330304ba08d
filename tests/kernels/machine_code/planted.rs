//! Faults planted in copies of kernels, compiled as the kernels are: the checks of this folder must see each of them.

use std::collections::BTreeMap;
use std::fs;

use super::disassembly::{can_look, compile, disassemble};
use super::flight::{groups, waits_behind_branches};
use super::hopper::{FORWARD, QUERY};
use super::program::{Instruction, Kernel, Loop, parse};

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

/// A kernel with one loop, whose pass is `body` with one product in front, in the words of nvdisasm.
fn listed(body: &[&str]) -> Kernel {
    let product = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0";
    let head = [".L_x_1:", product];
    let lines = head.iter().chain(body).chain(&["@P0 BRA `(.L_x_1)", "EXIT"]);
    let line = |(place, text): (usize, &&str)| match text.ends_with(':') {
        true => format!("{text}\n"),
        false => format!("        /*{:04x}*/                   {text} ;\n", 16 * place),
    };
    let text: String = lines.enumerate().map(line).collect();
    parse(&format!("\n.text.listed:\n{text}")).remove("listed").expect("a kernel")
}

fn only_loop(kernel: &Kernel) -> &Loop {
    assert_eq!(kernel.loops.len(), 1);
    &kernel.loops[0]
}

const WAIT: &str = "WARPGROUP.DEPBAR.LE gsb0, 0x0";

/// What a predicate may leave out, or a branch may pass by, does not run in every pass.
#[test]
fn guarded_exponentials_are_not_counted_as_executed() {
    for (exponential, counted) in [("MUFU.EX2 R1, R2", 1), ("@P1 MUFU.EX2 R1, R2", 0), ("@!UP1 MUFU.EX2 R1, R2", 0)] {
        let kernel = listed(&[exponential, WAIT]);
        let found = groups(&kernel, only_loop(&kernel));
        assert_eq!(found[0].meanwhile(&kernel, "MUFU.EX2"), counted, "{exponential}");
    }
}

#[test]
fn a_wait_behind_a_branch_is_seen() {
    let plain = listed(&["MUFU.EX2 R1, R2", WAIT]);
    assert!(waits_behind_branches(&plain, only_loop(&plain)).is_empty());
    let hidden = listed(&["@P1 BRA `(.L_x_2)", WAIT, ".L_x_2:", "MUFU.EX2 R1, R2", WAIT]);
    assert_eq!(waits_behind_branches(&hidden, only_loop(&hidden)).len(), 1);
}

#[test]
fn every_access_to_memory_is_seen() {
    let reaches = |text: &str| listed(&[text]).instructions.iter().any(Instruction::reaches_memory);
    for access in [
        "LDG.E.128 R1, [R2.64]",
        "ST.E [R2.64], R1",
        "STL [R1], R2",
        "ATOM.E.ADD.F32 R1, [R2.64], R3",
        "ATOMG.E.ADD R1, [R2.64], R3",
        "RED.E.ADD.F32 [R2.64], R3",
        "LDGSTS.E.128 [R1], [R2.64]",
        "UBLKCP.S.G [UR4], [UR6], UR8",
        "UTMASTG.2D [UR4], [UR6]",
        "UTMAREDG.2D.ADD [UR4], [UR6]",
    ] {
        assert!(reaches(access), "{access}");
    }
    for other in
        ["LDS R1, [R2]", "LDSM.16.M88.4 R1, [R2]", "STS [R1], R2", "LDC R1, c[0x0][0x0]", "ATOMS.ADD R1, [R2], R3"]
    {
        assert!(!reaches(other), "{other}");
    }
}

#[test]
fn every_way_to_select_is_seen() {
    let selects = |body: &[&str]| {
        let kernel = listed(body);
        kernel.selections(only_loop(&kernel)).len()
    };
    for way in [
        "FSEL R1, R2, RZ, P1",
        "FSETP.GT.AND P1, PT, R1, R2, PT",
        "SEL R1, R2, RZ, P1",
        "@P1 MOV R1, RZ",
        "@!P1 FMUL R1, R1, R2",
    ] {
        assert_eq!(selects(&["ISETP.GT.AND P1, PT, R1, R2, PT", way]), 1, "{way}");
    }
    assert_eq!(selects(&["FMUL R1, R1, R2", "ISETP.GT.AND P1, PT, R1, R2, PT", "USEL UR1, UR2, URZ, UP1"]), 0);
    let behind = ["@P1 BRA `(.L_x_2)", "SEL R1, R2, RZ, P1", ".L_x_2:", "FMUL R1, R1, R2"];
    assert_eq!(selects(&behind), 0, "where not everything is visible");
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
