//! Bytes and products of a kernel launch, from its parameters alone: what a [dry run](super::Cuda::dry) adds up instead of
//! executing. The simulator's counters hold them to what the kernels do (`tests/kernels/counters.rs`).
//!
//! Bytes are the different bytes that a launch reads and writes, scratch included; with caches that keep nothing from one
//! launch to the next, they are what it moves. FLOP are those of tensor cores: useful ones as `bench::count` has them, and
//! executed ones with the padding of tiles.

use super::driver::{Argument, Launch};

/// What a launch does at least, and what its kernel makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ClosedForm {
    /// Different bytes read and written.
    pub bytes: f64,
    /// FLOP of products that the operation needs.
    pub useful_flop: f64,
    /// FLOP that the tensor cores execute.
    pub executed_flop: f64,
}

/// Reads `uint32_t` values from device memory, where its content is known.
pub(super) type ReadWords<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u32>>;

/// The closed form of a launch; `None` for kernels that have none here, and where content is needed and not known.
pub(super) fn of_launch(launch: &Launch, arguments: &[Argument], read: ReadWords) -> Option<ClosedForm> {
    let (stem, element) = stem_and_element(launch.kernel);
    let call = Call { launch, arguments, element, read };
    if let Some(stem) = stem.strip_prefix("sm90_attention_") {
        return attention(&call, stem);
    }
    let bytes = |bytes: f64| Some(ClosedForm { bytes, ..ClosedForm::default() });
    match stem {
        "rms_norm_forward" => bytes(norm_forward(&call)),
        "rms_norm_backward" => bytes(norm_backward(&call)),
        "rms_norm_weight" => bytes(4.0 * call.number(1) * call.number(2) + 8.0 * call.number(2)),
        "rope" => bytes(rope(&call)),
        "swiglu_forward" => bytes(3.0 * swiglu(&call, 2)),
        "swiglu_backward" => bytes(5.0 * swiglu(&call, 3)),
        "gather_rows" => bytes(gather(&call)),
        "embedding_sort_tiles" => bytes(12.0 * call.number(2)),
        "embedding_merge_tiles" => bytes(16.0 * call.number(2)),
        "embedding_sum_runs" => bytes(embedding_sums(&call)),
        "attention_statistics" => bytes(statistics(&call)),
        "weighted_sum" => bytes(8.0 * call.number(4) + 8.0),
        "squared_norm" => bytes(4.0 * call.number(2) + 8.0 * call.blocks()),
        "sign_mask" => bytes(20.0 * call.number(6)),
        "loss_head_compact" => bytes(8.0 * call.number(1) + 4.0),
        "loss_head_gather" | "loss_head_scatter" => bytes(move_rows(&call)),
        "loss_head_cross_entropy" | "loss_head_negative_entropy" | "loss_head_teacher_divergence" => {
            bytes(losses(&call, stem))
        }
        "lora_down" | "lora_down_dropout" => Some(lora_down(&call)),
        "lora_rank_gradients" => Some(lora_rank_gradients(&call)),
        "lora_factor_gradients" | "lora_factor_gradients_dropout" => Some(lora_factor_gradients(&call)),
        "lora_input_gradient" | "lora_input_gradient_dropout" => Some(lora_input_gradient(&call)),
        "lora_sum_parts" => bytes(sum_parts(&call)),
        _ if stem.starts_with("optimizer_") => bytes(optimizer(&call, launch.kernel)),
        _ => None,
    }
}

/// A kernel's name without its dtype, and the bytes of an element of that dtype.
fn stem_and_element(kernel: &str) -> (&str, f64) {
    let kernel = kernel.strip_suffix("_moments").unwrap_or(kernel);
    match (kernel.strip_suffix("_bf16"), kernel.strip_suffix("_f32")) {
        (Some(stem), _) => (stem, 2.0),
        (_, Some(stem)) => (stem, 4.0),
        _ => (kernel, 0.0),
    }
}

/// A launch taken apart.
struct Call<'a> {
    launch: &'a Launch<'a>,
    arguments: &'a [Argument],
    /// Bytes of an element of the kernel's dtype.
    element: f64,
    read: ReadWords<'a>,
}

impl Call<'_> {
    /// The parameter at this place, a count.
    fn number(&self, place: usize) -> f64 {
        match self.arguments.get(place) {
            Some(Argument::U32(value)) => f64::from(*value),
            Some(Argument::U64(value)) => *value as f64,
            _ => 0.0,
        }
    }

    fn pointer(&self, place: usize) -> u64 {
        match self.arguments.get(place) {
            Some(Argument::Pointer(value)) => *value,
            _ => 0,
        }
    }

    /// 1 where a pointer is not null.
    fn given(&self, place: usize) -> f64 {
        if self.pointer(place) == 0 { 0.0 } else { 1.0 }
    }

    fn blocks(&self) -> f64 {
        self.launch.grid.iter().map(|side| f64::from(*side)).product()
    }

    /// Blocks in x: rows, where a block has a row.
    fn rows(&self) -> f64 {
        f64::from(self.launch.grid[0])
    }

    /// How many different numbers stand at a pointer; as many as there are where that is not known.
    fn distinct(&self, place: usize, count: f64) -> f64 {
        let Some(mut words) = (self.read)(self.pointer(place), count as usize) else { return count };
        words.sort_unstable();
        words.dedup();
        words.len() as f64
    }
}

fn norm_forward(call: &Call) -> f64 {
    let cols = call.number(7);
    let matrices = 2.0 + call.given(1) + call.given(4);
    call.element * cols * (call.rows() * matrices + 1.0) + 4.0 * call.rows()
}

fn norm_backward(call: &Call) -> f64 {
    let rows = call.number(6);
    let cols = call.number(7);
    call.element * cols * (4.0 * rows + 1.0) + 4.0 * rows + call.given(5) * 4.0 * call.blocks() * cols
}

fn rope(call: &Call) -> f64 {
    let heads = call.number(5);
    let half = call.number(6);
    let tables = 2.0 * 4.0 * half * call.distinct(1, call.rows());
    call.rows() * (2.0 * call.element * heads * 2.0 * half + 4.0) + tables
}

/// Bytes of h, whose columns are the parameter at `cols`.
fn swiglu(call: &Call, cols: usize) -> f64 {
    call.element * call.blocks() / call.number(cols + 1).max(1.0) * call.number(cols)
}

fn gather(call: &Call) -> f64 {
    let cols = call.number(3);
    call.rows() * (4.0 + call.element * cols) + call.element * cols * call.distinct(1, call.rows())
}

/// As if all ids differed.
fn embedding_sums(call: &Call) -> f64 {
    call.number(1) * (8.0 + (call.element + 8.0) * call.number(4))
}

fn statistics(call: &Call) -> f64 {
    call.number(4) * call.number(5) * (2.0 * call.element * call.number(6) + 4.0 + 8.0)
}

/// As if all rows were live.
fn move_rows(call: &Call) -> f64 {
    call.rows() * (2.0 * call.element * call.number(2) + 4.0) + 4.0
}

/// As if all rows were live; cross-entropy reads the target too, and a divergence the teacher's logits.
fn losses(call: &Call, stem: &str) -> f64 {
    let gradient = if call.number(8) == 0.0 { 0.0 } else { call.element };
    let target = if stem.ends_with("cross_entropy") { 4.0 } else { 0.0 };
    let teacher = if stem.ends_with("teacher_divergence") { 4.0 * up(call.number(2), 4.0) } else { 0.0 };
    call.rows() * ((4.0 + gradient) * call.number(2) + teacher + target + 16.0) + 4.0
}

fn lora_down(call: &Call) -> ClosedForm {
    let [tokens, input, ranks] = [1, 2, 3].map(|place| call.number(place));
    ClosedForm {
        bytes: 2.0 * (tokens * input + ranks * input + tokens * ranks),
        useful_flop: 2.0 * tokens * input * ranks,
        executed_flop: 2.0 * up(tokens, 32.0) * up(input, 64.0) * up(ranks, 64.0),
    }
}

fn lora_rank_gradients(call: &Call) -> ClosedForm {
    let [tokens, columns, ranks, range] = [2, 3, 6, 10].map(|place| call.number(place));
    let with_b = call.given(8);
    let ds_parts = 4.0 * tokens * ranks * (columns / 256.0).ceil();
    let db_parts = 4.0 * columns * ranks * (tokens / range.max(1.0)).ceil();
    let padded = up(tokens, 64.0) * up(columns, 256.0) * up(ranks, 32.0);
    ClosedForm {
        bytes: 2.0 * (tokens * columns + with_b * tokens * ranks + columns * ranks) + ds_parts + with_b * db_parts,
        useful_flop: 2.0 * (1.0 + with_b) * tokens * columns * ranks,
        executed_flop: 2.0 * (1.0 + with_b) * padded,
    }
}

fn lora_factor_gradients(call: &Call) -> ClosedForm {
    let [tokens, input, ranks, range] = [1, 2, 4, 6].map(|place| call.number(place));
    let parts = 4.0 * ranks * input * (tokens / range.max(1.0)).ceil();
    ClosedForm {
        bytes: 2.0 * (tokens * input + tokens * ranks) + parts,
        useful_flop: 2.0 * tokens * input * ranks,
        executed_flop: 2.0 * up(tokens, 64.0) * up(input, 128.0) * up(ranks, 64.0),
    }
}

fn lora_input_gradient(call: &Call) -> ClosedForm {
    let [tokens, input, ranks] = [1, 2, 3].map(|place| call.number(place));
    ClosedForm {
        bytes: 2.0 * (tokens * ranks + ranks * input + 2.0 * tokens * input),
        useful_flop: 2.0 * tokens * input * ranks,
        executed_flop: 2.0 * up(tokens, 64.0) * up(input, 128.0) * up(ranks, 64.0),
    }
}

/// Into a bf16 matrix, or onto an f32 matrix.
fn sum_parts(call: &Call) -> f64 {
    let output = if call.element == 2.0 { 2.0 } else { 8.0 };
    call.number(3) * (4.0 * call.number(2) + output)
}

/// Nine coefficients; a key of four words where states are rounded. The first state of the schedule-free rule, a second set
/// of weights, is f32 in every mode.
fn optimizer(call: &Call, kernel: &str) -> f64 {
    let rounded = kernel.ends_with("_moments");
    let state = if rounded { 2.0 } else { 4.0 };
    let first = if kernel.starts_with("optimizer_schedule_free") { 4.0 } else { state };
    let states = first * call.given(4) + state * call.given(5);
    let weight = call.element + 2.0 * call.given(2);
    call.number(6) * (2.0 * weight + 4.0 + 2.0 * states) + 36.0 + if rounded { 16.0 } else { 0.0 }
}

/// A pass of attention on Hopper: `forward_128`, `backward_key_value_128`, `backward_query_128`. Blocks of 128 rows; tiles
/// of 128 keys, or of 64 queries where a block has keys.
fn attention(call: &Call, stem: &str) -> Option<ClosedForm> {
    let (pass, head_dim) = stem.rsplit_once('_')?;
    let head_dim: f64 = head_dim.parse().ok()?;
    let forward = pass == "forward";
    let [segments, heads, key_value_heads] = if forward { [1, 4, 5] } else { [3, 6, 7] };
    let heads = call.number(heads);
    let key_value_heads = call.number(key_value_heads);
    let blocks_of = if pass == "backward_key_value" { key_value_heads } else { heads };
    let count = (call.rows() / blocks_of.max(1.0)) as usize;
    let words = (call.read)(call.pointer(segments), 3 * count)?;
    let lengths: Vec<f64> = words.chunks(3).map(|segment| f64::from(segment[2])).collect();
    let tokens: f64 = lengths.iter().sum();
    let visible: f64 = lengths.iter().map(|length| length * (length + 1.0) / 2.0).sum();
    let pairs: f64 = lengths.iter().map(|length| executed_pairs(*length, pass == "backward_key_value")).sum();
    let element = call.element;
    let query = heads * head_dim;
    let key_value = key_value_heads * head_dim;
    let qkv = element * (query + 2.0 * key_value);
    let (row_bytes, useful, executed) = match pass {
        "forward" => (qkv + element * query + 4.0 * heads, 2.0, 2.0),
        "backward_key_value" => (qkv + element * (query + 2.0 * key_value) + 8.0 * heads, 4.0, 4.0),
        "backward_query" => (qkv + 2.0 * element * query + 8.0 * heads, 1.0, 3.0),
        _ => return None,
    };
    let product = 2.0 * heads * head_dim;
    Some(ClosedForm {
        bytes: tokens * row_bytes + 12.0 * lengths.len() as f64,
        useful_flop: useful * product * visible,
        executed_flop: executed * product * pairs,
    })
}

/// Pairs of a query and a key in the tiles of a causal sequence that are not hidden as a whole.
fn executed_pairs(length: f64, blocks_of_keys: bool) -> f64 {
    let blocks = (length / 128.0).ceil() as usize;
    let tiles = |block: usize| {
        if blocks_of_keys { 64.0 * ((length - 128.0 * block as f64) / 64.0).ceil() } else { 128.0 * (block + 1) as f64 }
    };
    (0..blocks).map(|block| 128.0 * tiles(block)).sum()
}

fn up(value: f64, multiple: f64) -> f64 {
    (value / multiple).ceil() * multiple
}
