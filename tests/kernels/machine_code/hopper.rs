//! The claims of `sm90_attention_*.cu`: what runs while the tensor cores multiply, and what a pass of the main loops is
//! free of.

use super::disassembly::{built, can_look};
use super::flight::{Group, groups, waits_behind_branches};
use super::program::{Kernel, Loop};

/// A kernel with a main loop of products, without `_64_bf16` or `_128_bf16`.
pub struct MainLoop {
    pub file: &'static str,
    pub stem: &'static str,
    /// What its groups of products compute, in the order of a pass.
    pub groups: &'static [&'static str],
    /// Branches of a pass: those of the waits, those around what only tiles at an edge need, and that of the loop.
    pub branches: usize,
}

pub const FORWARD: MainLoop = MainLoop {
    file: "sm90_attention_forward",
    stem: "sm90_attention_forward",
    groups: &["scores", "p v"],
    branches: 4, // values are there; hide; the next keys are there; next pass
};
pub const KEY_VALUE: MainLoop = MainLoop {
    file: "sm90_attention_backward",
    stem: "sm90_attention_backward_key_value",
    groups: &["scores", "dP", "d_v", "d_k"],
    branches: 4, // tiles are there; clear rows; hide; next pass
};
pub const QUERY: MainLoop = MainLoop {
    file: "sm90_attention_backward",
    stem: "sm90_attention_backward_query",
    groups: &["scores", "dP", "d_q"],
    branches: 4, // tiles are there; clear rows; hide; next pass
};
const MAIN_LOOPS: [MainLoop; 3] = [FORWARD, KEY_VALUE, QUERY];

impl MainLoop {
    pub fn name(&self, head_dim: usize) -> String {
        format!("{}_{head_dim}_bf16", self.stem)
    }

    /// The only loop with products, and its groups.
    pub fn find<'a>(&self, kernel: &'a Kernel) -> (&'a Loop, Vec<Group>) {
        let found: Vec<&Loop> = kernel.loops_with("HGMMA").collect();
        assert_eq!(found.len(), 1, "{}: loops with products", kernel.name);
        let hidden = waits_behind_branches(kernel, found[0]);
        assert!(hidden.is_empty(), "{}: waits for products behind branches, at {hidden:#x?}", kernel.name);
        let groups = groups(kernel, found[0]);
        assert_eq!(groups.len(), self.groups.len(), "{}: groups of products, {groups:#x?}", kernel.name);
        (found[0], groups)
    }

    /// Both kernels as they were built.
    fn built(&self) -> [&'static Kernel; 2] {
        [64, 128].map(|head_dim| &built(self.file)[&self.name(head_dim)])
    }

    /// How many instructions of this name run while a group is in flight.
    pub fn meanwhile(&self, kernel: &Kernel, group: &str, name: &str) -> usize {
        let index = self.groups.iter().position(|found| *found == group).expect("a group of this kernel");
        self.find(kernel).1[index].meanwhile(kernel, name)
    }

    /// What contradicts that a pass has no branch but those, and no branch at all between the products of a group.
    pub fn branches(&self, kernel: &Kernel) -> Vec<String> {
        let (inner, groups) = self.find(kernel);
        let mut problems = Vec::new();
        let branches = count(kernel, &inner.spine, |class| class == "branch");
        if branches > self.branches {
            problems.push(format!("{}: {branches} branches in a pass, {} are needed", kernel.name, self.branches));
        }
        for group in groups.iter().filter(|group| count(kernel, &group.within, |class| class == "branch") > 0) {
            problems.push(format!("{}: a branch between the products at {:#x}", kernel.name, group.first));
        }
        problems
    }

    /// Descriptors that a pass moves from ordinary to uniform registers.
    pub fn descriptor_moves(&self, kernel: &Kernel) -> usize {
        count(kernel, &self.find(kernel).0.spine, |class| class == "R2UR")
    }
}

fn count(kernel: &Kernel, indices: &[usize], is: impl Fn(&str) -> bool) -> usize {
    indices.iter().filter(|&&index| is(kernel.instructions[index].class())).count()
}

/// Of the 66 exponentials of a tile (64 scores and what two rows shrink by), the softmax of one tile runs while p v of the
/// tile before is multiplied.
#[test]
fn forward_runs_at_least_60_exponentials_while_p_v_is_in_flight() {
    if can_look() {
        for kernel in FORWARD.built() {
            let exponentials = FORWARD.meanwhile(kernel, "p v", "MUFU.EX2");
            assert!(exponentials >= 60, "{}: {exponentials}", kernel.name);
        }
    }
}

/// Of the 64 exponentials of a tile.
#[test]
fn the_gradient_of_queries_runs_at_least_60_exponentials_while_dp_is_in_flight() {
    if can_look() {
        for kernel in QUERY.built() {
            let exponentials = QUERY.meanwhile(kernel, "dP", "MUFU.EX2");
            assert!(exponentials >= 60, "{}: {exponentials}", kernel.name);
        }
    }
}

/// Of the 32 exponentials of a step; and dS = P (dP - delta), 64 operations, while d_v is multiplied; and the scores of
/// the next step are in the queue while d_k is multiplied.
#[test]
fn the_gradient_of_keys_runs_at_least_30_exponentials_while_dp_is_in_flight_and_ds_while_d_v_is() {
    if can_look() {
        for kernel in KEY_VALUE.built() {
            let exponentials = KEY_VALUE.meanwhile(kernel, "dP", "MUFU.EX2");
            assert!(exponentials >= 30, "{}: {exponentials}", kernel.name);
            let group = &KEY_VALUE.find(kernel).1[2];
            let arithmetic = count(kernel, &group.meanwhile, |class| class == "FFMA FMUL FADD");
            assert!(arithmetic >= 60, "{}: {arithmetic} while d_v is in flight", kernel.name);
            assert!(KEY_VALUE.meanwhile(kernel, "d_k", "HGMMA") > 0, "{}: the queue is empty behind d_k", kernel.name);
        }
    }
}

#[test]
fn no_descriptor_is_moved_to_uniform_registers_in_the_main_loops() {
    if can_look() {
        for main in MAIN_LOOPS {
            for kernel in main.built() {
                assert_eq!(main.descriptor_moves(kernel), 0, "{}", kernel.name);
            }
        }
    }
}

#[test]
fn a_pass_branches_only_for_waits_and_edges_and_never_between_products() {
    if can_look() {
        for main in MAIN_LOOPS {
            for kernel in main.built() {
                let problems = main.branches(kernel);
                assert!(problems.is_empty(), "{problems:#?}");
            }
        }
    }
}

/// Addresses of tiles are 32-bit numbers in shared memory, results stay in registers until the end, and the steps of the
/// key and value kernel are counted rather than divided (a division converts to f32 and back).
#[test]
fn the_main_loops_have_no_64_bit_address_no_access_to_memory_and_no_division() {
    if can_look() {
        for main in MAIN_LOOPS {
            for kernel in main.built() {
                let (inner, _) = main.find(kernel);
                for index in kernel.inside(inner) {
                    let instruction = &kernel.instructions[index];
                    let division = ["I2F", "F2I", "MUFU.RCP"].iter().any(|name| instruction.is(name));
                    let foreign = instruction.reaches_memory() || division || instruction.is_wide_arithmetic();
                    assert!(!foreign, "{}: {instruction:x?}", kernel.name);
                }
            }
        }
    }
}

/// Where every key is visible, probabilities are not compared and selected, by whatever instruction.
#[test]
fn backward_selects_nothing_where_everything_is_visible() {
    if can_look() {
        for main in [KEY_VALUE, QUERY] {
            for kernel in main.built() {
                let (inner, _) = main.find(kernel);
                // Places in the rings of tiles wrap by a selection each; a pass has 32 probabilities or 64.
                let (places, others): (Vec<_>, Vec<_>) =
                    kernel.selections(inner).into_iter().partition(|instruction| instruction.is("SEL"));
                assert!(others.is_empty() && places.len() <= 8, "{}: {others:x?}, {places:x?}", kernel.name);
            }
        }
    }
}
