//! The decoder for Python: what `waterfill/__init__.py` builds on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyKeyError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList};
use waterfill_checkpoint::packed::PackedFormat;
use waterfill_checkpoint::{CheckpointError, Control, QualityPrefix, Storage};
use waterfill_codec::Dtype;
use waterfill_codec::scale::scale;

fn failed(error: CheckpointError) -> PyErr {
    match error {
        CheckpointError::Io { .. } => PyOSError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

fn dtype_of(name: &str) -> PyResult<Dtype> {
    match name {
        "bfloat16" => Ok(Dtype::Bf16),
        "float16" => Ok(Dtype::F16),
        "float32" => Ok(Dtype::F32),
        other => Err(PyValueError::new_err(format!("dtype {other:?}, expected bfloat16, float16 or float32"))),
    }
}

fn name_of(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::F32 => "float32",
        _ => "bfloat16",
    }
}

/// An open checkpoint.
#[pyclass(frozen)]
struct Checkpoint(waterfill_checkpoint::Checkpoint);

impl Checkpoint {
    fn known(&self, name: &str) -> PyResult<&waterfill_checkpoint::TensorInfo> {
        self.0.tensor(name).map_err(|e| PyKeyError::new_err(e.to_string()))
    }
}

#[pymethods]
impl Checkpoint {
    #[new]
    #[pyo3(signature = (path, layers=None, bytes=None))]
    fn new(path: PathBuf, layers: Option<usize>, bytes: Option<u64>) -> PyResult<Self> {
        let prefix = match (layers, bytes) {
            (None, None) => return waterfill_checkpoint::Checkpoint::open(path).map(Self).map_err(failed),
            (Some(layers @ 1..), None) => QualityPrefix::Layers(layers),
            (None, Some(bytes)) => QualityPrefix::Bytes(bytes),
            _ => return Err(PyValueError::new_err("expected layers of 1 or more, or bytes, not both")),
        };
        waterfill_checkpoint::Checkpoint::open_prefix(path, prefix).map(Self).map_err(failed)
    }

    /// Quality layers that are open, the base counted.
    fn layers(&self) -> usize {
        self.0.quality_layers()
    }

    /// Names of all tensors, sorted.
    fn names(&self) -> Vec<String> {
        self.0.tensors().map(|t| t.name.clone()).collect()
    }

    /// Shape, bytes in the file, and true if it is coded.
    fn info(&self, name: &str) -> PyResult<(Vec<usize>, u64, bool)> {
        let tensor = self.known(name)?;
        Ok((tensor.shape.clone(), tensor.bytes, tensor.storage == Storage::Coded))
    }

    /// Row-major little-endian elements. Other threads run meanwhile; Ctrl-C ends it.
    fn decode<'py>(&self, py: Python<'py>, name: &str, dtype: &str) -> PyResult<Bound<'py, PyByteArray>> {
        self.known(name)?;
        let dtype = dtype_of(dtype)?;
        let length = self.0.decoded_bytes(name, dtype).map_err(failed)?;
        PyByteArray::new_with(py, length, |out| {
            py.detach(|| interruptible(|control| self.0.decode(name, dtype, out, control)))
        })
    }

    /// Tiles to multiply with, as a dictionary of bytes.
    fn packed<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        self.known(name)?;
        let packed = py.detach(|| interruptible(|control| self.0.decode_packed(name, control)))?;
        let f32s = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let made = PyDict::new(py);
        made.set_item("shape", (packed.rows, packed.cols))?;
        made.set_item("dtype", name_of(packed.dtype))?;
        made.set_item("row_scales", PyBytes::new(py, &f32s(&packed.row_factors())))?;
        made.set_item("col_scales", PyBytes::new(py, &f32s(&packed.col_factors())))?;
        made.set_item("resident_bytes", packed.resident_bytes())?;
        made.set_item("trellis", packed.trellis.map(|t| (t.states.state_bits(), t.restart)))?;
        let buckets = PyList::empty(py);
        for bucket in &packed.buckets {
            let format = match bucket.format {
                PackedFormat::Plain(dtype) => name_of(dtype),
                format => format.name(),
            };
            let across = packed.tiles_across();
            let places = bucket.places().flat_map(|[row, column]| ((row * across + column) as u32).to_le_bytes());
            let places: Vec<u8> = places.collect();
            let scales: Vec<f32> = (0..bucket.tiles()).filter_map(|n| bucket.scale_index(n)).map(scale).collect();
            let one = PyDict::new(py);
            one.set_item("format", format)?;
            one.set_item("tiles", PyBytes::new(py, &places))?;
            one.set_item("scales", PyBytes::new(py, &f32s(&scales)))?;
            one.set_item("data", PyBytes::new(py, &bucket.data))?;
            buckets.append(one)?;
        }
        made.set_item("buckets", buckets)?;
        Ok(made)
    }
}

/// Runs `f` so that Ctrl-C ends it.
fn interruptible<T>(f: impl FnOnce(Control) -> waterfill_checkpoint::Result<T>) -> PyResult<T> {
    let stop = AtomicBool::new(false);
    // Only the main thread sees signals; elsewhere this finds none.
    let look = |_: usize, _: usize| {
        if Python::attach(|py| py.check_signals()).is_err() {
            stop.store(true, Ordering::Relaxed);
        }
    };
    match f(Control { progress: Some(&look), cancelled: Some(&stop) }) {
        Err(CheckpointError::Cancelled) => Err(pyo3::exceptions::PyKeyboardInterrupt::new_err(())),
        other => other.map_err(failed),
    }
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::Checkpoint;
}
