//! Matrix products by cuBLASLt: one algorithm for each description, chosen once, the same on every run: the library's first
//! proposal, or the one that [`Products::choose`] was given for products of that shape.
//!
//! Products are summed in f32: bf16 operands on the tensor cores, f32 operands without tf32 or emulation. The library
//! may not split the sum over k between blocks (split-K 1, no reduction scheme), so results do not depend on how work is
//! scheduled. One workspace for each stream: calls in a stream do not overlap.

use std::collections::{BTreeSet, HashMap};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{self, cublasLtMatmulAlgoConfigAttributes_t as Configuration};
use cudarc::driver::{CudaContext, CudaStream, result as driver};

use super::super::choices::{Algorithm, ProductShape};
use super::error::during;
use super::libraries;
use super::lock;
use super::product::{Call, ColumnMajor, Description, column_major};
use crate::error::{Error, Result};
use crate::ops::DType;

/// What cuBLAS's manual recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Algorithms to look through for those that keep our rules.
const CANDIDATES: usize = 16;
/// The alignment that the operands of a chosen algorithm have at least.
const CHOSEN_ALIGNMENT: u32 = 16;

/// The library, on one stream.
pub(super) struct Products {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    /// `None`: the library has no algorithm for it that keeps our rules. Asked for once.
    plans: Mutex<HashMap<Description, Option<Arc<Plan>>>>,
    /// Plans by algorithms that somebody chose, by descriptions of the least alignment.
    chosen: Mutex<HashMap<Description, Arc<Plan>>>,
    /// What was left to our own kernel since somebody asked.
    fallbacks: Mutex<BTreeSet<String>>,
}

// SAFETY: the handle may be used from several threads at once, descriptors are only read after they are made, and every
// call binds the context first.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

/// The library's version, if it is here.
pub(super) fn version() -> Option<String> {
    if !libraries::products_are_present() {
        return None;
    }
    // SAFETY: the library is present; this function only returns a constant.
    let version = unsafe { sys::cublasLtGetVersion() };
    Some(format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

impl Products {
    /// The library on this stream; `Ok(None)` where this machine does not have it or it does not start.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Option<Self>> {
        let context = Arc::clone(stream.context());
        context.bind_to_thread().map_err(during("matrix products"))?;
        if version().is_none() {
            return Ok(None);
        }
        let Ok(handle) = lt::create_handle() else { return Ok(None) };
        // SAFETY: the context is current; the library writes the workspace before it reads it.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE_BYTES) };
        let products = Self {
            context,
            stream: Arc::clone(stream),
            handle,
            workspace: *workspace.as_ref().unwrap_or(&0),
            plans: Mutex::default(),
            chosen: Mutex::default(),
            fallbacks: Mutex::default(),
        };
        workspace.map_err(during("workspace of matrix products"))?;
        Ok(Some(products))
    }

    /// Queues a product; `false` where the library cannot do it under our rules, and nothing was done.
    ///
    /// # Safety
    /// The call's operands are device memory, C apart from A and B; the context is current.
    pub(super) unsafe fn run(&self, call: &Call) -> Result<bool> {
        let Some(plan) = self.plan(&call.description)? else {
            if call.description.has_whole_vectors() {
                lock(&self.fallbacks).insert(call.description.to_string());
            }
            return Ok(false);
        };
        let result = call.result as *mut c_void;
        // SAFETY: descriptors and algorithm were made for this description; the caller vouches for the operands.
        unsafe {
            lt::matmul(
                self.handle,
                plan.parts.operation.0,
                std::ptr::from_ref(&call.alpha).cast(),
                std::ptr::from_ref(&call.beta).cast(),
                call.first as *const c_void,
                plan.parts.first.0,
                call.second as *const c_void,
                plan.parts.second.0,
                result,
                plan.parts.result.0,
                result,
                plan.parts.result.0,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(|error| failed("a matrix product", error))?;
        Ok(true)
    }

    /// The algorithms for a description of the least alignment that keep our rules, the library's first one first.
    pub(super) fn candidates(&self, description: &Description) -> Result<Vec<Algorithm>> {
        let Some(parts) = Parts::new(description)? else { return Ok(Vec::new()) };
        let found = parts.proposals(self.handle).map_err(|error| failed(&parts.what, error))?;
        Ok(found.into_iter().map(bytes_of).collect())
    }

    /// From now on products of this description, or of one with more alignment, go to an algorithm, or to the library's own
    /// choice again.
    pub(super) fn choose(&self, description: &Description, algorithm: Option<Algorithm>) -> Result<()> {
        let Some(algorithm) = algorithm else {
            lock(&self.chosen).remove(description);
            return Ok(());
        };
        let refused =
            || Error::Device(format!("{description}: cuBLASLt cannot do it by the algorithm that was chosen"));
        let parts = Parts::new(description)?.ok_or_else(refused)?;
        let algorithm = algorithm_of(algorithm);
        if !parts.allows(self.handle, &algorithm) {
            return Err(refused());
        }
        lock(&self.chosen).insert(*description, Arc::new(Plan { parts, algorithm }));
        Ok(())
    }

    /// The products since the last call that had no algorithm.
    pub(super) fn take_fallbacks(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.fallbacks)).into_iter().collect()
    }

    /// The plan for a description: the one that was chosen, or from the cache if it was asked for before.
    fn plan(&self, description: &Description) -> Result<Option<Arc<Plan>>> {
        if let Some(plan) = lock(&self.chosen).get(&description.with_alignment(CHOSEN_ALIGNMENT))
            && description.least_alignment() >= CHOSEN_ALIGNMENT
        {
            return Ok(Some(Arc::clone(plan)));
        }
        let mut plans = lock(&self.plans);
        if let Some(plan) = plans.get(description) {
            return Ok(plan.clone());
        }
        let plan = Plan::new(self.handle, description)?.map(Arc::new);
        if plan.is_none() {
            tracing::warn!(
                "cuBLASLt has no deterministic algorithm for {description}: temper's own, slower, takes its place"
            );
        }
        plans.insert(*description, plan.clone());
        Ok(plan)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        self.chosen.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: both were made by `new` and are given back once. `free_sync` waits for work that uses the memory.
        unsafe {
            if self.workspace != 0 {
                self.context.record_err(driver::free_sync(self.workspace));
            }
            // Nothing can be done about an error here.
            let _ = lt::destroy_handle(self.handle);
        }
    }
}

/// What an algorithm for products of a shape is chosen for: memory of the least alignment.
pub(super) fn description_to_choose_for(shape: &ProductShape) -> Description {
    // Null is aligned to anything.
    column_major(&shape.on(0, 0, 0)).description.with_alignment(CHOSEN_ALIGNMENT)
}

/// Everything that a call needs but memory and factors.
struct Plan {
    parts: Parts,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: descriptors and algorithm are only read after they are made, from whichever thread, and given back once.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    /// By the first algorithm that the library proposes and that keeps our rules.
    fn new(handle: sys::cublasLtHandle_t, description: &Description) -> Result<Option<Self>> {
        let Some(parts) = Parts::new(description)? else { return Ok(None) };
        let found = parts.proposals(handle).map_err(|error| failed(&parts.what, error))?;
        Ok(found.into_iter().next().map(|algorithm| Self { parts, algorithm }))
    }
}

/// A description in the library's own terms.
struct Parts {
    /// For messages.
    what: String,
    operation: Operation,
    first: Layout,
    second: Layout,
    result: Layout,
    preference: Preference,
}

impl Parts {
    /// None for dtypes that are none of the library's.
    fn new(description: &Description) -> Result<Option<Self>> {
        let what = format!("a plan for {description}");
        let (Some(input), Some(output)) = (element(description.input), element(description.output)) else {
            return Ok(None);
        };
        let make = || -> Result<Self, CublasError> {
            let operation = Operation::new(description)?;
            let first = Layout::new(input, &description.first)?;
            let second = Layout::new(input, &description.second)?;
            let result = Layout::new(output, &description.result)?;
            let preference = Preference::new(description)?;
            Ok(Self { what: what.clone(), operation, first, second, result, preference })
        };
        make().map(Some).map_err(|error| failed(&what, error))
    }

    /// The algorithms that the library proposes and that keep our rules, in its order.
    fn proposals(&self, handle: sys::cublasLtHandle_t) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CublasError> {
        let mut proposals = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed() }; CANDIDATES];
        let mut count = 0;
        // SAFETY: descriptors are valid, and there is room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                self.operation.0,
                self.first.0,
                self.second.0,
                self.result.0,
                self.result.0,
                self.preference.0,
                CANDIDATES as i32,
                proposals[0].as_mut_ptr(),
                &mut count,
            )
        };
        match status {
            sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => {}
            sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => return Ok(Vec::new()),
            other => return Err(CublasError(other)),
        }
        // SAFETY: the library wrote the first `count` results; before that they were zero, which is valid too.
        let written =
            proposals.iter().take(count.max(0) as usize).map(|proposal| unsafe { proposal.assume_init_ref() });
        Ok(written.filter(|proposal| keeps_rules(proposal)).map(|proposal| proposal.algo).collect())
    }

    /// Whether the library can do this by an algorithm under our rules.
    fn allows(&self, handle: sys::cublasLtHandle_t, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: descriptors are valid, the library checks the algorithm, and there is room for its result.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle,
                self.operation.0,
                self.first.0,
                self.second.0,
                self.result.0,
                self.result.0,
                algorithm,
                result.as_mut_ptr(),
            )
        };
        // SAFETY: zeros are a valid result, and so is what the library writes.
        let result = unsafe { result.assume_init() };
        let found = sys::cublasLtMatmulHeuristicResult_t { algo: *algorithm, ..result };
        status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && keeps_rules(&found)
    }
}

/// Whether an algorithm fits the workspace and leaves the sum over k in one piece.
fn keeps_rules(proposal: &sys::cublasLtMatmulHeuristicResult_t) -> bool {
    let usable = proposal.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
    usable
        && proposal.workspaceSize <= WORKSPACE_BYTES
        && number_of(&proposal.algo, Configuration::CUBLASLT_ALGO_CONFIG_SPLITK_NUM).is_some_and(|split| split <= 1)
        && number_of(&proposal.algo, Configuration::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)
            .is_none_or(|scheme| scheme == 0)
}

fn bytes_of(algorithm: sys::cublasLtMatmulAlgo_t) -> Algorithm {
    let mut bytes = [0; 64];
    for (to, word) in bytes.chunks_exact_mut(8).zip(algorithm.data) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    Algorithm(bytes)
}

fn algorithm_of(algorithm: Algorithm) -> sys::cublasLtMatmulAlgo_t {
    let word = |index: usize| std::array::from_fn(|byte| algorithm.0[8 * index + byte]);
    sys::cublasLtMatmulAlgo_t { data: std::array::from_fn(|index| u64::from_le_bytes(word(index))) }
}

/// A 32-bit attribute of an algorithm's configuration, where the library says it.
fn number_of(algorithm: &sys::cublasLtMatmulAlgo_t, attribute: Configuration) -> Option<i32> {
    let mut value = 0i32;
    let mut written = 0usize;
    let to = std::ptr::from_mut(&mut value).cast::<c_void>();
    // SAFETY: the attribute is of 32 bits, and there is room for it.
    let status =
        unsafe { sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, to, size_of::<i32>(), &mut written) };
    (status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(value)
}

fn element(dtype: DType) -> Option<sys::cudaDataType> {
    match dtype {
        DType::F32 => Some(sys::cudaDataType::CUDA_R_32F),
        DType::Bf16 => Some(sys::cudaDataType::CUDA_R_16BF),
        DType::Remainder16 | DType::U32 => None,
    }
}

fn failed(what: &str, error: CublasError) -> Error {
    Error::Device(format!("{what}: cuBLASLt says {:?}", error.0))
}

/// The operation's descriptor.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new(description: &Description) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let compute = match description.input {
            // "Pedantic": f32 multiplications and additions, and nothing that imitates them.
            DType::F32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_PEDANTIC,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let operation = Self(lt::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?);
        let flags = [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, description.first.transposed),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, description.second.transposed),
        ];
        for (attribute, transposed) in flags {
            let value = i32::from(transposed); // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1
            // SAFETY: the descriptor is valid, and the attribute is an int32.
            unsafe { lt::set_matmul_desc_attribute(operation.0, attribute, std::ptr::from_ref(&value).cast(), 4)? };
        }
        Ok(operation)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made by `new`, given back once.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

/// A matrix's descriptor.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(element: sys::cudaDataType, matrix: &ColumnMajor) -> Result<Self, CublasError> {
        let rows = matrix.rows as u64;
        let columns = matrix.columns as u64;
        let leading = matrix.leading as i64;
        lt::create_matrix_layout(element, rows, columns, leading).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, given back once.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm must keep to.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(description: &Description) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(lt::create_matmul_pref()?);
        let workspace = WORKSPACE_BYTES as u64;
        // SAFETY: the descriptor is valid, and this attribute is a uint64.
        unsafe {
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(preference.0, attribute, std::ptr::from_ref(&workspace).cast(), 8)?;
        }
        let alignments = [&description.first, &description.second, &description.result].map(|matrix| matrix.alignment);
        let no_reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        let values = [
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, no_reduction),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments[0]),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments[1]),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments[2]),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments[2]),
        ];
        for (attribute, value) in values {
            // SAFETY: the descriptor is valid, and these attributes are uint32.
            unsafe { lt::set_matmul_pref_attribute(preference.0, attribute, std::ptr::from_ref(&value).cast(), 4)? };
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, given back once.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}
