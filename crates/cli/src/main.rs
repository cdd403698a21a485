//! The `waterfill` command.

mod arguments;
mod commands;
mod interrupt;
mod measure;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use arguments::Arguments;
use clap::Parser;
use waterfill_pipeline::{Console, Mode};

/// Tensors come and go by the million; the system's allocator returns each to the kernel and
/// spends as long clearing pages as the arithmetic takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Set for this process once candle's own thread pools are kept at one thread.
const SETTLED: &str = "CANDLE_NUM_THREADS";

/// Batches run side by side in our pool. candle's own pools would compete with it (they spin while
/// they wait), and can only be sized by the environment, before the process starts.
fn settle_environment() -> std::io::Result<()> {
    if std::env::var_os(SETTLED).is_some() {
        return Ok(());
    }
    let mut again = std::process::Command::new(std::env::current_exe()?);
    let failed = again.args(std::env::args_os().skip(1)).env(SETTLED, "1").env("RAYON_NUM_THREADS", "1").exec();
    Err(failed)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = settle_environment() {
        eprintln!("waterfill: cannot restart with one candle thread, going on more slowly: {error}");
    }
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match arguments.mode() {
                Mode::Json => eprintln!("{}", serde_json::json!({"event": "error", "message": message(&error)})),
                _ => eprintln!("waterfill: {}", message(&error)),
            }
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, those left out that it quotes already.
fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.contains(&cause) {
        true => text,
        false if text.is_empty() => cause,
        false => format!("{text}: {cause}"),
    })
}

fn execute(arguments: &Arguments) -> Result<()> {
    // Before anything else: the tensor library runs in this pool too.
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = arguments.threads.map_or(cores, usize::from);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("starting threads")?;
    interrupt::explain(arguments.progress());
    commands::execute(arguments, &Console::new(arguments.progress()))
}
