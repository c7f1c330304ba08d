//! What runs while products of a warpgroup are in flight.
//!
//! A group of wgmma instructions ends with the one that carries the scoreboard `gsb0`. `WARPGROUP.DEPBAR.LE gsb0, n`
//! waits until at most n groups are unfinished; groups finish in their order. So a pass over a loop's spine, repeated
//! until it meets the state that it began with, says which wait covers which group and what lies between them.

use std::collections::{BTreeMap, VecDeque};

use super::program::{Kernel, Loop};

/// A group of products in a loop, and what is executed until the wait that covers it.
#[derive(Debug)]
pub struct Group {
    /// Address of its first product.
    pub first: u32,
    pub products: usize,
    /// The shape of a product: `64x128x16`.
    pub shape: String,
    /// Whether the left operand is in registers.
    pub left_in_registers: bool,
    /// Indices of the instructions between its first and its last product that are no products.
    pub within: Vec<usize>,
    /// Address of the wait that covers it.
    pub wait: u32,
    /// Indices of the instructions that every pass executes between its last product and the wait: none behind a branch, and none
    /// with a predicate in front of it.
    pub meanwhile: Vec<usize>,
}

impl Group {
    pub fn meanwhile(&self, kernel: &Kernel, name: &str) -> usize {
        self.meanwhile.iter().filter(|&&index| kernel.instructions[index].is(name)).count()
    }
}

/// The groups of a loop, in the order of its spine. A group that no wait of the loop covers is left out.
pub fn groups(kernel: &Kernel, inner: &Loop) -> Vec<Group> {
    let mut found: BTreeMap<u32, Group> = BTreeMap::new();
    let mut flying: VecDeque<Group> = VecDeque::new();
    let mut open: Vec<usize> = Vec::new(); // of the group that is not committed yet, from its first product on
    for &index in inner.spine.iter().cycle().take(3 * inner.spine.len()) {
        let instruction = &kernel.instructions[index];
        if instruction.is("WARPGROUP.DEPBAR") {
            let left =
                instruction.operands.rsplit("0x").next().and_then(|digits| usize::from_str_radix(digits, 16).ok());
            while flying.len() > left.expect("a wait says how many groups may be left") {
                let mut group = flying.pop_front().expect("there is one");
                group.wait = instruction.address;
                found.insert(group.first, group);
            }
        }
        let product = instruction.is("HGMMA");
        if product || !open.is_empty() {
            open.push(index);
        }
        if instruction.guard.is_none() {
            flying.iter_mut().for_each(|group| group.meanwhile.push(index));
        }
        if product && instruction.operands.contains("gsb0") {
            flying.push_back(group(kernel, std::mem::take(&mut open)));
        }
    }
    found.into_values().collect()
}

/// Waits for products behind a branch of a loop, of which [`groups`] knows nothing: a pass that takes the branch waits earlier.
pub fn waits_behind_branches(kernel: &Kernel, inner: &Loop) -> Vec<u32> {
    let waits = kernel.inside(inner).filter(|&index| kernel.instructions[index].is("WARPGROUP.DEPBAR"));
    waits.filter(|index| !inner.spine.contains(index)).map(|index| kernel.instructions[index].address).collect()
}

/// A group that was just committed, from the instructions of its first to its last product.
fn group(kernel: &Kernel, indices: Vec<usize>) -> Group {
    let at = |index: usize| &kernel.instructions[index];
    let (products, within): (Vec<usize>, Vec<usize>) = indices.iter().partition(|&&index| at(index).is("HGMMA"));
    let first = at(indices[0]);
    let left = first.operands.split(", ").nth(1).unwrap_or_default();
    Group {
        first: first.address,
        products: products.len(),
        shape: first.opcode.split('.').nth(1).unwrap_or_default().to_string(),
        left_in_registers: left.starts_with('R'),
        within,
        wait: 0,
        meanwhile: Vec::new(),
    }
}
