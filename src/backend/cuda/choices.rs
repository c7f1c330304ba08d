//! [`Choices`]: which of several ways to compute the same a device takes, where somebody has measured them.
//!
//! Without a choice a product goes to the algorithm that the library names first, and a kernel has the block that its
//! launcher gives it. Two ways agree within the bounds of the kernels' tests and not bit for bit: the choices of a run are
//! part of what its numbers depend on, and have a fingerprint.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::driver::{Gemm, Operand};
use super::sizes;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::ops::DType;

/// What a matrix product's algorithm is chosen by: a [`Gemm`] without its memory and its factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductShape {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Summands of an element.
    pub k: usize,
    /// Whether memory holds the transposes of A and of B.
    pub transposed: [bool; 2],
    /// Elements from one row in memory to the next: of A, B and C.
    pub leading: [usize; 3],
    /// How A and B are stored.
    pub input: DType,
    /// How C is stored.
    pub output: DType,
    /// Whether the product is added to what C holds.
    pub accumulate: bool,
}

impl ProductShape {
    /// The shape of a product.
    pub fn of(gemm: &Gemm) -> Self {
        Self {
            m: gemm.m,
            n: gemm.n,
            k: gemm.k,
            transposed: [gemm.a.transposed, gemm.b.transposed],
            leading: [gemm.a.leading, gemm.b.leading, gemm.c_leading],
            input: gemm.input,
            output: gemm.output,
            accumulate: gemm.beta != 0.0,
        }
    }

    /// The product of this shape on the memory at three addresses, with a factor of 1.
    pub fn on(&self, a: u64, b: u64, c: u64) -> Gemm {
        let operand = |pointer, index: usize| Operand {
            pointer,
            leading: self.leading[index],
            transposed: self.transposed[index],
        };
        Gemm {
            m: self.m,
            n: self.n,
            k: self.k,
            a: operand(a, 0),
            b: operand(b, 1),
            c,
            c_leading: self.leading[2],
            input: self.input,
            output: self.output,
            alpha: 1.0,
            beta: f32::from(u8::from(self.accumulate)),
        }
    }

    /// Elements of memory from the first of A, of B and of C to their last.
    pub fn extents(&self) -> [usize; 3] {
        let rows = |transposed: bool, rows: usize, columns: usize| if transposed { columns } else { rows };
        let [a, b] = [rows(self.transposed[0], self.m, self.k), rows(self.transposed[1], self.k, self.n)];
        [a * self.leading[0], b * self.leading[1], self.m * self.leading[2]]
    }

    /// The leading dimensions of matrices whose rows lie one behind the other.
    fn dense(&self) -> [usize; 3] {
        let [ta, tb] = self.transposed;
        [if ta { self.m } else { self.k }, if tb { self.k } else { self.n }, self.n]
    }

    /// Operations; a multiply and an add are two.
    pub fn flop(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

/// For people, and the key of a choice: `8192x6144x4096 nt bf16 bf16`, with ` +=` where it accumulates and the leading
/// dimensions where rows lie further apart than they are long.
impl fmt::Display for ProductShape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let letter = |transposed| if transposed { "t" } else { "n" };
        let [ta, tb] = self.transposed;
        let stored = [self.input, self.output].map(DType::name);
        write!(f, "{}x{}x{} {}{} {} {}", self.m, self.n, self.k, letter(ta), letter(tb), stored[0], stored[1])?;
        if self.accumulate {
            f.write_str(" +=")?;
        }
        if self.leading != self.dense() {
            write!(f, " rows of {}, {} and {}", self.leading[0], self.leading[1], self.leading[2])?;
        }
        Ok(())
    }
}

/// The reverse of its text.
impl FromStr for ProductShape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let nothing = |shape: &ProductShape| shape.m == 0 || shape.n == 0 || shape.k == 0;
        parse_product(text).filter(|shape| !nothing(shape) && shape.to_string() == text).ok_or_else(|| {
            Error::Device(format!(
                "`{text}` describes no product: it is like `8x3x5 nt bf16 f32 += rows of 8, 5 and 3`"
            ))
        })
    }
}

fn parse_product(text: &str) -> Option<ProductShape> {
    let (dense, rows) = text.split_once(" rows of ").map_or((text, None), |(dense, rows)| (dense, Some(rows)));
    let (dense, accumulate) = dense.strip_suffix(" +=").map_or((dense, false), |dense| (dense, true));
    let [sizes, transposed, input, output]: [&str; 4] = dense.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let [m, n, k] = numbers(sizes.split('x'))?;
    let transposed = match transposed {
        "nn" => [false, false],
        "nt" => [false, true],
        "tn" => [true, false],
        "tt" => [true, true],
        _ => return None,
    };
    let [input, output] = [dtype_named(input)?, dtype_named(output)?];
    let shape = ProductShape { m, n, k, transposed, leading: [0; 3], input, output, accumulate };
    let leading = match rows {
        Some(rows) => numbers(rows.split(", ").flat_map(|part| part.split(" and ")))?,
        None => shape.dense(),
    };
    Some(ProductShape { leading, ..shape })
}

fn numbers<'a>(parts: impl Iterator<Item = &'a str>) -> Option<[usize; 3]> {
    parts.map(|part| part.parse().ok()).collect::<Option<Vec<usize>>>()?.try_into().ok()
}

/// An algorithm of the device's library, in the library's own bytes, which mean something to its version alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm(pub [u8; 64]);

/// A kernel with a block for each row, whose threads are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowKernel {
    /// `rms_norm_forward`.
    RmsNormForward,
    /// `rms_norm_backward`, with and without a gradient of the weight.
    RmsNormBackward,
}

impl RowKernel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::RmsNormForward, Self::RmsNormBackward];

    /// Its name in `kernels/`, without the dtype.
    pub fn name(self) -> &'static str {
        match self {
            Self::RmsNormForward => "rms_norm_forward",
            Self::RmsNormBackward => "rms_norm_backward",
        }
    }

    /// Most threads of a block that are worth a try, the launcher's own first: fewer threads leave room for more blocks,
    /// whose loads fill the time in which others wait for their sums.
    pub fn candidates(self) -> &'static [u32] {
        match self {
            Self::RmsNormForward => &[sizes::NORM_FORWARD_THREADS as u32, 128],
            Self::RmsNormBackward => &[sizes::NORM_BACKWARD_THREADS as u32, 256],
        }
    }
}

/// The rows of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowShape {
    /// The kernel.
    pub kernel: RowKernel,
    /// Elements of a row.
    pub columns: usize,
    /// How they are stored.
    pub dtype: DType,
}

/// For people, and the key of a choice: `rms_norm_forward 4096 bf16`.
impl fmt::Display for RowShape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {} {}", self.kernel.name(), self.columns, self.dtype.name())
    }
}

/// The reverse of its text.
impl FromStr for RowShape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let [name, columns, dtype]: [&str; 3] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let kernel = RowKernel::ALL.into_iter().find(|kernel| kernel.name() == name)?;
            Some(Self { kernel, columns: columns.parse().ok()?, dtype: dtype_named(dtype)? })
        };
        parse().filter(|shape| shape.columns > 0 && shape.to_string() == text).ok_or_else(|| {
            Error::Device(format!("`{text}` describes no rows of a kernel: they are like `rms_norm_forward 4096 bf16`"))
        })
    }
}

/// The dtype of operands with this name.
fn dtype_named(name: &str) -> Option<DType> {
    [DType::F32, DType::Bf16].into_iter().find(|dtype| dtype.name() == name)
}

/// The choices of a device, by the text of what they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    /// Algorithms of the library by [`ProductShape`], in hexadecimal digits.
    pub products: BTreeMap<String, String>,
    /// Most threads of a block by [`RowShape`].
    pub threads: BTreeMap<String, u32>,
}

impl Choices {
    /// Tells choices apart that may give other bits; none where nothing was chosen.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn fingerprint(&self) -> Result<Option<Fingerprint>> {
        let nothing = self.products.is_empty() && self.threads.is_empty();
        if nothing { Ok(None) } else { Fingerprint::of(self).map(Some) }
    }

    /// Whether these hold all choices of `other`, the same ones, and perhaps more.
    pub fn extend(&self, other: &Self) -> bool {
        other.products.iter().all(|(shape, algorithm)| self.products.get(shape) == Some(algorithm))
            && other.threads.iter().all(|(rows, threads)| self.threads.get(rows) == Some(threads))
    }

    /// The products with their algorithms.
    ///
    /// # Errors
    /// Where a text is none of a product, of a kernel's rows or of an algorithm, or a number of threads is no candidate.
    pub fn parsed(&self) -> Result<Vec<(ProductShape, Algorithm)>> {
        for (rows, threads) in &self.threads {
            let shape: RowShape = rows.parse()?;
            if !shape.kernel.candidates().contains(threads) {
                let candidates = shape.kernel.candidates();
                return Err(Error::Device(format!(
                    "`{rows}` in blocks of {threads} threads: they have one of {candidates:?}"
                )));
            }
        }
        let product = |(shape, algorithm): (&String, &String)| {
            let read = Algorithm::from_text(algorithm);
            let read =
                read.ok_or_else(|| Error::Device(format!("`{shape}`: `{algorithm}` is no algorithm of a product")))?;
            Ok((shape.parse()?, read))
        };
        self.products.iter().map(product).collect()
    }

    /// Most threads of a block for these rows.
    pub(super) fn threads(&self, shape: RowShape) -> u32 {
        let standard = shape.kernel.candidates()[0];
        if self.threads.is_empty() { standard } else { *self.threads.get(&shape.to_string()).unwrap_or(&standard) }
    }
}

impl Algorithm {
    /// As hexadecimal digits.
    pub fn to_text(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// From hexadecimal digits, 128 of them.
    pub fn from_text(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)).collect();
        if digits.len() == 128 { bytes.try_into().ok().map(Self) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ProductShape = ProductShape {
        m: 8,
        n: 3,
        k: 5,
        transposed: [false, true],
        leading: [5, 5, 3],
        input: DType::Bf16,
        output: DType::F32,
        accumulate: false,
    };

    /// The text tells apart whatever the library tells apart.
    #[test]
    fn shapes_have_a_text_each() {
        let others = [
            ProductShape { accumulate: true, ..SHAPE },
            ProductShape { leading: [8, 5, 3], ..SHAPE },
            ProductShape { transposed: [false, false], leading: [5, 3, 3], ..SHAPE },
            ProductShape { output: DType::Bf16, ..SHAPE },
            ProductShape { k: 6, leading: [6, 6, 3], ..SHAPE },
        ];
        let texts: std::collections::BTreeSet<String> =
            others.iter().chain([&SHAPE]).map(ToString::to_string).collect();
        assert_eq!(texts.len(), 6, "{texts:?}");
        for shape in others.iter().chain([&SHAPE]) {
            assert_eq!(shape.to_string().parse::<ProductShape>().unwrap(), *shape);
        }
        for wrong in ["", "8x3 nt bf16 f32", "8x3x5 nt bf16 u32", "8x3x5 xx bf16 f32", "8x3x5 nt bf16 f32 rows of 5, 5"]
            .into_iter()
            .chain(["0x0x0 nt bf16 f32", "08x3x5 nt bf16 f32", "8x3x5 nt fp8 f32", "hello world"])
        {
            assert!(wrong.parse::<ProductShape>().is_err(), "{wrong}");
        }
        assert_eq!(SHAPE.to_string(), "8x3x5 nt bf16 f32");
        assert_eq!(others[1].to_string(), "8x3x5 nt bf16 f32 rows of 8, 5 and 3");
    }

    #[test]
    fn a_shape_is_that_of_its_own_product() {
        assert_eq!(ProductShape::of(&SHAPE.on(16, 32, 64)), SHAPE);
        assert_eq!(SHAPE.extents(), [40, 15, 24]);
        assert_eq!(SHAPE.flop(), 240.0);
    }

    #[test]
    fn algorithms_are_read_only_as_they_are_written() {
        let algorithm = Algorithm(std::array::from_fn(|i| 3 * i as u8 + 1));
        let text = algorithm.to_text();
        assert_eq!(Algorithm::from_text(&text), Some(algorithm));
        for wrong in ["", "zz", &text[1..], &format!("{text}00"), &text.replacen('1', "é", 1)] {
            assert_eq!(Algorithm::from_text(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn nothing_chosen_has_no_fingerprint() {
        let mut choices = Choices::default();
        assert_eq!(choices.fingerprint().unwrap(), None);
        let shape = RowShape { kernel: RowKernel::RmsNormForward, columns: 64, dtype: DType::F32 };
        assert_eq!(choices.threads(shape), 256);
        choices.threads.insert(shape.to_string(), 128);
        assert_eq!(choices.threads(shape), 128);
        let first = choices.fingerprint().unwrap();
        choices.threads.insert(shape.to_string(), 256);
        assert_ne!(first, choices.fingerprint().unwrap());
        assert!(choices.parsed().unwrap().is_empty());
        let fewer = Choices::default();
        assert!(choices.extend(&fewer) && choices.extend(&choices) && !fewer.extend(&choices));
        for wrong in ["gemm 64 f32", "rms_norm_forward 64 fp8", "rms_norm_forward 0 f32", "rms_norm_forward 64"] {
            assert!(wrong.parse::<RowShape>().is_err(), "{wrong}");
        }
        assert_eq!(shape.to_string().parse::<RowShape>().unwrap(), shape);
        choices.threads.insert(shape.to_string(), 96);
        assert!(choices.parsed().unwrap_err().to_string().contains("96 threads"));
    }
}
