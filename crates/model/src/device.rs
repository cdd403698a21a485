//! Devices by name, and their free memory.

use candle_core::{Device, Error};

use crate::error::{ModelError, Result};

/// Opens the device a user named: `cpu` or `cuda:N`.
///
/// # Errors
/// Other names, and devices that this build or machine does not have.
pub fn device(name: &str) -> Result<Device> {
    let failed = |reason: String| ModelError::Device { asked: name.into(), reason };
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        Some(("cuda", n)) => {
            let n = n.parse().map_err(|_| failed("expected cuda:N with N a number".into()))?;
            if !cfg!(feature = "cuda") {
                let reason = "this build has no CUDA; build one with `just build-cuda`, or leave --device out";
                return Err(failed(reason.into()));
            }
            let hint = "`nvidia-smi -L` lists what there is; leave --device out to compute on the CPU";
            Device::new_cuda(n).map_err(|e| failed(format!("{}; {hint}", without_backtrace(&e))))
        }
        _ => Err(failed("expected cpu or cuda:N".into())),
    }
}

/// Free bytes of a device's own memory; `None` for the CPU, whose memory is the machine's.
pub fn free_device_memory(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            candle_core::cuda_backend::cudarc::driver::result::mem_get_info().ok().map(|(free, _)| free as u64)
        }
        _ => None,
    }
}

impl ModelError {
    /// Whether a device's own memory did not suffice.
    pub fn is_out_of_device_memory(&self) -> bool {
        matches!(self, Self::Candle(error) if out_of_memory(error))
    }
}

/// The message of an error without its backtrace.
fn without_backtrace(error: &Error) -> String {
    match error {
        Error::WithBacktrace { inner, .. } => without_backtrace(inner),
        other => other.to_string(),
    }
}

/// Looks through contexts and backtraces.
fn out_of_memory(error: &Error) -> bool {
    match error {
        Error::Cuda(inner) => {
            let text = format!("{inner:?}").to_lowercase();
            text.contains("out_of_memory") || text.contains("alloc_failed")
        }
        Error::WithBacktrace { inner, .. } | Error::WithPath { inner, .. } | Error::Context { inner, .. } => {
            out_of_memory(inner)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_told_from_other_trouble() {
        let driver = |text: &str| ModelError::Candle(Error::Cuda(text.into()).bt());
        assert!(driver("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")").is_out_of_device_memory());
        assert!(driver("CublasError(CUBLAS_STATUS_ALLOC_FAILED)").is_out_of_device_memory());
        assert!(!driver("DriverError(CUDA_ERROR_NO_DEVICE)").is_out_of_device_memory());
        assert!(!ModelError::Candle(Error::Msg("out_of_memory".into())).is_out_of_device_memory());
        assert_eq!(free_device_memory(&Device::Cpu), None);
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn builds_without_cuda_say_so() {
        let message = device("cuda:0").unwrap_err().to_string();
        assert!(message.contains("cuda:0") && message.contains("just build-cuda"), "{message}");
        assert!(device("cuda:x").unwrap_err().to_string().contains("cuda:N"));
    }
}
