//! Machine code as a program: kernels, their basic blocks, their loops, and classes of instructions.
//!
//! A loop is a natural loop: the blocks from which its beginning is reached again without leaving it. nvcc puts the slow
//! ways of waits behind the end of a kernel, so the addresses of a loop have gaps. Its **spine** is the instructions
//! that every pass executes, in the order in which it does; the others stand behind branches.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Classes of instructions, by the beginning of their names, and the rest.
pub const CLASSES: &[(&str, &[&str])] = &[
    ("HGMMA", &["HGMMA"]),
    ("HMMA", &["HMMA"]),
    ("MUFU.EX2", &["MUFU.EX2"]),
    ("MUFU", &["MUFU"]),
    ("FFMA FMUL FADD", &["FFMA", "FMUL", "FADD"]),
    ("FMNMX", &["FMNMX"]),
    ("FSEL FSETP", &["FSEL", "FSETP"]),
    ("LDS", &["LDS"]),
    ("STS", &["STS"]),
    ("LDSM", &["LDSM"]),
    ("LDG", &["LDG"]),
    ("STG", &["STG"]),
    ("LDL STL", &["LDL", "STL"]),
    ("LDGSTS", &["LDGSTS"]),
    ("R2UR", &["R2UR"]),
    ("branch", &["BRA", "BRX", "JMP", "CALL", "RET", "EXIT"]),
    ("BSSY BSYNC", &["BSSY", "BSYNC", "WARPSYNC"]),
    ("barrier", &["BAR"]),
    ("SYNCS", &["SYNCS"]),
    (
        "integer",
        &[
            "IMAD",
            "ISETP",
            "IADD3",
            "VIADD",
            "LEA",
            "LOP3",
            "SHF",
            "SEL",
            "PRMT",
            "VIMNMX",
            "VIADDMNMX",
            "IABS",
            "UIADD3",
            "UIMAD",
            "ULEA",
            "ULOP3",
            "USHF",
            "UISETP",
            "USEL",
            "UPRMT",
        ],
    ),
];

/// One instruction.
#[derive(Debug)]
pub struct Instruction {
    pub address: u32,
    /// The predicate in front of it.
    pub guard: Option<String>,
    /// Its name with everything behind its dots: `MUFU.EX2`.
    pub opcode: String,
    pub operands: String,
}

impl Instruction {
    /// Whether its name is this one, whatever follows behind further dots.
    pub fn is(&self, name: &str) -> bool {
        self.opcode.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Its class in [`CLASSES`], or "other".
    pub fn class(&self) -> &'static str {
        let found = CLASSES.iter().find(|(_, names)| names.iter().any(|name| self.is(name)));
        found.map_or("other", |(class, _)| class)
    }

    /// Whether it reads, writes or changes global or local memory, by itself or by the copy engine.
    pub fn reaches_memory(&self) -> bool {
        const NAMES: [&str; 19] = [
            "LD", "LDG", "LDL", "LDGSTS", "ST", "STG", "STL", "ATOM", "ATOMG", "RED", "REDG", "CCTL", "UBLKCP",
            "UBLKRED", "UBLKPF", "UTMALDG", "UTMASTG", "UTMAREDG", "UTMAPF",
        ];
        NAMES.iter().any(|name| self.is(name))
    }

    /// Whether it chooses between numbers: a selection, a comparison of numbers, or arithmetic or a move that a predicate may leave
    /// out. What uniform registers hold is the same for all threads, and no such number.
    fn selects(&self) -> bool {
        let written = ["FADD", "FMUL", "FFMA", "MUFU", "MOV", "IMAD.MOV", "CS2R", "F2FP", "FMNMX"];
        let guarded = self.guard.is_some() && written.iter().any(|name| self.is(name));
        guarded || ["SEL", "FSEL", "FSETP", "FSET", "HSETP2"].iter().any(|name| self.is(name))
    }

    /// Part of an address of 64 bits: a wide product, or the half of a sum that takes the carry.
    pub fn is_wide_arithmetic(&self) -> bool {
        let names = self.opcode.split('.').collect::<Vec<_>>();
        let arithmetic = ["IMAD", "IADD3", "LEA", "UIMAD", "UIADD3", "ULEA"].contains(&names[0]);
        arithmetic && (names.contains(&"WIDE") || names.contains(&"X"))
    }

    /// Where it jumps to, as a label.
    fn target(&self) -> Option<&str> {
        Some(self.operands.split_once("`(")?.1.split_once(')')?.0)
    }

    /// Whether the next instruction may be executed after it, too.
    fn continues(&self) -> bool {
        let always = self.guard.is_none();
        match self.opcode.split('.').next() {
            Some("BRA") => !always || !self.operands.starts_with("`("),
            Some("EXIT" | "RET" | "BRX") => !always,
            _ => true,
        }
    }
}

/// Instructions that are executed together, and the blocks that may follow.
#[derive(Debug)]
pub struct Block {
    pub instructions: Range<usize>,
    pub next: Vec<usize>,
}

/// A loop of a kernel.
#[derive(Debug)]
pub struct Loop {
    /// Address of its first instruction.
    pub address: u32,
    pub blocks: BTreeSet<usize>,
    /// Indices of the instructions of every pass, in their order.
    pub spine: Vec<usize>,
}

/// A kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    pub name: String,
    pub instructions: Vec<Instruction>,
    pub blocks: Vec<Block>,
    pub loops: Vec<Loop>,
}

impl Kernel {
    /// How many instructions of each class there are among these.
    pub fn classes(&self, indices: impl Iterator<Item = usize>) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for index in indices {
            *counts.entry(self.instructions[index].class()).or_insert(0) += 1;
        }
        counts
    }

    /// Every instruction of a loop, on its spine or behind a branch.
    pub fn inside<'a>(&'a self, inner: &'a Loop) -> impl Iterator<Item = usize> + 'a {
        inner.blocks.iter().flat_map(|&block| self.blocks[block].instructions.clone())
    }

    /// What a pass over a loop selects between numbers by.
    pub fn selections<'a>(&'a self, inner: &'a Loop) -> Vec<&'a Instruction> {
        let pass = inner.spine.iter().map(|&index| &self.instructions[index]);
        pass.filter(|instruction| instruction.selects()).collect()
    }

    /// Loops on whose spine an instruction of this name stands: those that work with it in every pass.
    pub fn loops_with<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Loop> + 'a {
        let has = move |inner: &&Loop| inner.spine.iter().any(|&index| self.instructions[index].is(name));
        self.loops.iter().filter(has)
    }
}

/// Reads what `nvdisasm -c` prints.
pub fn parse(text: &str) -> BTreeMap<String, Kernel> {
    let mut kernels = BTreeMap::new();
    let sections = text.split("\n.text.").skip(1);
    for section in sections {
        let (name, body) = section.split_once(":\n").expect("the name of a section ends its line");
        let mut kernel = Kernel { name: name.into(), ..Kernel::default() };
        let mut labels = BTreeMap::new();
        for line in body.lines().map(str::trim) {
            if let Some(label) = line.strip_suffix(':') {
                labels.insert(label.to_string(), kernel.instructions.len());
            } else if let Some(instruction) = instruction(line) {
                kernel.instructions.push(instruction);
            }
        }
        kernel.blocks = blocks(&kernel.instructions, &labels);
        kernel.loops = loops(&kernel);
        kernels.insert(name.to_string(), kernel);
    }
    kernels
}

/// `/*0a10*/   @P0 BRA P1, `(.L_x_1) ;`
fn instruction(line: &str) -> Option<Instruction> {
    let (address, text) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let mut words = text.split_once(';')?.0.trim();
    let mut guard = None;
    if let Some((predicate, rest)) = words.strip_prefix('@').and_then(|guarded| guarded.split_once(' ')) {
        guard = Some(predicate.to_string());
        words = rest.trim_start();
    }
    let (opcode, operands) = words.split_once(' ').unwrap_or((words, ""));
    Some(Instruction { address, guard, opcode: opcode.into(), operands: operands.trim().into() })
}

fn blocks(instructions: &[Instruction], labels: &BTreeMap<String, usize>) -> Vec<Block> {
    let jump = |index: usize| -> Option<usize> {
        let instruction: &Instruction = &instructions[index];
        let jumps = ["BRA", "WARPSYNC"].iter().any(|name| instruction.is(name));
        instruction.target().filter(|_| jumps).and_then(|label| labels.get(label).copied())
    };
    let count = instructions.len();
    let mut starts: BTreeSet<usize> = labels.values().copied().chain([0]).filter(|&index| index < count).collect();
    for (index, instruction) in instructions.iter().enumerate() {
        if index + 1 < count && (jump(index).is_some() || !instruction.continues()) {
            starts.insert(index + 1);
        }
    }
    let starts: Vec<usize> = starts.into_iter().collect();
    let block_at = |index: usize| starts.binary_search(&index).ok();
    let ends = starts.iter().skip(1).copied().chain([count]);
    let block = |(&start, end): (&usize, usize)| {
        let falls = instructions[end - 1].continues().then_some(end).filter(|&end| end < count);
        let next = [falls, jump(end - 1)].into_iter().flatten().filter_map(block_at).collect();
        Block { instructions: start..end, next }
    };
    starts.iter().zip(ends).map(block).collect()
}

/// Blocks that a kernel reaches from its entry, so that each comes before those that follow it, but for loops.
fn order(blocks: &[Block]) -> Vec<usize> {
    let mut seen = vec![false; blocks.len()];
    let mut order = Vec::new();
    let mut open = vec![(0, 0)];
    seen[0] = true;
    while let Some((block, tried)) = open.pop() {
        match blocks[block].next.get(tried) {
            Some(&next) => {
                open.push((block, tried + 1));
                if !std::mem::replace(&mut seen[next], true) {
                    open.push((next, 0));
                }
            }
            None => order.push(block),
        }
    }
    order.reverse();
    order
}

/// The immediate dominator of each block (Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm").
fn dominators(blocks: &[Block], order: &[usize]) -> Vec<Option<usize>> {
    let mut place = vec![usize::MAX; blocks.len()];
    let mut before = vec![Vec::new(); blocks.len()];
    for (position, &block) in order.iter().enumerate() {
        place[block] = position;
        for &next in &blocks[block].next {
            before[next].push(block);
        }
    }
    let mut dominator = vec![None; blocks.len()];
    dominator[0] = Some(0);
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for &block in order.iter().skip(1) {
            let known = before[block].iter().copied().filter(|&from| dominator[from].is_some());
            let common = known.reduce(|mut a, mut b| {
                while a != b {
                    let later = if place[a] > place[b] { &mut a } else { &mut b };
                    *later = dominator[*later].expect("blocks before this one have a dominator");
                }
                a
            });
            changed |= std::mem::replace(&mut dominator[block], common) != common;
        }
    }
    dominator
}

fn loops(kernel: &Kernel) -> Vec<Loop> {
    let blocks = &kernel.blocks;
    if blocks.is_empty() {
        return Vec::new();
    }
    let order = order(blocks);
    let dominator = dominators(blocks, &order);
    let chain = |block: usize| {
        let up = |&block: &usize| dominator[block].filter(|&above| above != block);
        std::iter::successors(Some(block), up)
    };
    let mut latches: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &block in &order {
        for &next in blocks[block].next.iter().filter(|&&next| chain(block).any(|above| above == next)) {
            latches.entry(next).or_default().push(block);
        }
    }
    let mut before = vec![Vec::new(); blocks.len()];
    for &block in &order {
        blocks[block].next.iter().for_each(|&next| before[next].push(block));
    }
    let natural = |(&header, latches): (&usize, &Vec<usize>)| {
        let mut inside = BTreeSet::from([header]);
        let mut open = latches.clone();
        while let Some(block) = open.pop() {
            if inside.insert(block) {
                open.extend(&before[block]);
            }
        }
        let above = |latch: &usize| chain(*latch).filter(|block| inside.contains(block)).collect::<Vec<_>>();
        let always = |block: &usize| latches.iter().all(|latch| above(latch).contains(block));
        let mut spine = above(&latches[0]);
        spine.retain(always);
        let spine = spine.into_iter().rev().flat_map(|block| blocks[block].instructions.clone()).collect();
        let address = kernel.instructions[blocks[header].instructions.start].address;
        Loop { address, blocks: inside, spine }
    };
    latches.iter().map(natural).collect()
}
