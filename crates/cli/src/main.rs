//! The `waterfill` command.

mod arguments;
mod interrupt;
mod measure;
mod runs;
mod table;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use arguments::{Arguments, Bench, Command, ExportTarget, RunArguments, RunOptions};
use clap::Parser;
use waterfill_pipeline::{
    Console, Mode, QualityPrefix, Session, Store, Until, apply, decode, delta, dry_run, evaluate_original,
    export_compressed, export_exact, export_gguf, inspect, json_schema, load, load_sweep, load_train, lossy_delta,
    make_checkpoint, pack, run, run_sweep, train, train_schema, unpack, validate, verify, write_recipes,
};
use waterfill_runtime::{Form, Runtime};

use measure::Measured;

/// Tensors come and go by the million; the system's allocator returns each to the kernel and
/// spends as long clearing pages as the arithmetic takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Set for this process once candle has been told to leave threads to us.
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
    interrupt::explain(arguments.mode());
    let console = Console::new(arguments.mode());
    match &arguments.command {
        Command::Run(a) => execute_run(arguments, a, Until::Report, &console),
        Command::Calibrate(a) => execute_run(arguments, a, Until::Calibrate, &console),
        Command::Allocate(a) => execute_run(arguments, a, Until::Allocate, &console),
        Command::Encode(a) => execute_run(arguments, a, Until::Encode, &console),
        Command::Evaluate { original: true, run } => execute_original(arguments, run, &console),
        Command::Evaluate { original: false, run } => execute_run(arguments, run, Until::Evaluate, &console),
        Command::Report(a) => execute_run(arguments, a, Until::Report, &console),
        Command::Validate { config } => {
            show(arguments, &format!("{} is valid: {}", config.display(), validate(config)?), "valid")
        }
        Command::Sweep { file, dry_run, options } => execute_sweep(arguments, file, *dry_run, options, &console),
        Command::Runs(asked) => runs::execute_runs(arguments, asked),
        Command::Compare { first, second, store } => runs::execute_compare(arguments, store, [first, second]),
        Command::Gc { store, forget, yes, dry_run } => runs::execute_gc(arguments, store, forget, *yes, *dry_run),
        Command::Tables { runs, out } => runs::execute_tables(arguments, runs, out),
        Command::Map { run, tensor, point, out, store } => {
            runs::execute_map(arguments, (store, run), (*point, tensor), out)
        }
        Command::ExportNotebook { sweep, out, store } => runs::execute_notebook(arguments, sweep, out, store),
        Command::Train { config, repair } => {
            let output = train(&load_train(config)?, *repair, &console)?;
            console.finish("");
            match arguments.mode() {
                Mode::Json => println!("{}", serde_json::to_string(&output)?),
                _ => print!("{}", table::render_training(&output)),
            }
            Ok(())
        }
        Command::Schema { train } => {
            println!("{:#}", if *train { train_schema() } else { json_schema() });
            Ok(())
        }
        Command::Inspect { path } => show(arguments, inspect(path)?.trim_end(), "text"),
        Command::Verify { path, base } => show(arguments, verify(path, base.as_deref())?.trim_end(), "verified"),
        Command::Generate { checkpoint, prompt, tokens, dense } => {
            let form = if *dense { Form::Dense } else { Form::Packed };
            let runtime = Runtime::open(checkpoint, form)?;
            let written = runtime.write(prompt, *tokens as usize)?;
            match arguments.mode() {
                Mode::Json => println!("{}", table::generated(&runtime, &written)),
                mode => {
                    println!("{prompt}{}", written.text);
                    if mode != Mode::Quiet {
                        eprintln!("{}", table::render_generated(&runtime, &written));
                    }
                }
            }
            Ok(())
        }
        Command::ServeCheck { checkpoint, prompt, tokens } => {
            let checked = waterfill_runtime::check(checkpoint, prompt, *tokens as usize)?;
            show_figures(arguments, &checked, table::render_checked)
        }
        Command::Delta { base, tuned, out, lossy: Some(file) } => {
            let mut config = load(file)?;
            config.model = format!("path:{}", tuned.display());
            let session = Session::open(&config, &Store::new(&config.store), "cpu", &console)?;
            let found = lossy_delta(&session, base, out)?;
            console.finish("");
            show_figures(arguments, &found, table::render_lossy_delta)
        }
        Command::Delta { base, tuned, out, lossy: None } => {
            let text = delta(base, tuned, out, &console)?;
            console.finish("");
            show(arguments, &text, "delta")
        }
        Command::Apply { base, delta, out } => {
            let text = apply(base, delta, out, &console)?;
            console.finish("");
            show(arguments, &text, "applied")
        }
        Command::Bench { what: Bench::Difference { side } } => {
            let rows = waterfill_bench::bench_difference((*side).into())?;
            show_figures(arguments, &rows, |rows| table::render_difference(rows))
        }
        Command::Pack { file, out } => {
            let text = pack(file, out, &console)?;
            console.finish("");
            show(arguments, &text, "packed")
        }
        Command::Unpack { file, out } => {
            let text = unpack(file, out, &console)?;
            console.finish("");
            show(arguments, &text, "unpacked")
        }
        Command::MakeCheckpoint { like, layers, seed, out } => {
            show(arguments, &make_checkpoint(like, *layers, *seed, out)?, "made")
        }
        Command::Bench { what: Bench::Codec { side, repeats } } => {
            let figures = waterfill_bench::bench_codec((*side).into(), (*repeats).into())?;
            show_figures(arguments, &figures, table::render_bench)
        }
        Command::Bench { what: Bench::Quantizer { side, repeats } } => {
            let figures = waterfill_bench::bench_quantizer((*side).into(), (*repeats).into())?;
            show_figures(arguments, &figures, table::render_quantizer)
        }
        Command::Bench { what: Bench::Calibration { checkpoint, tokens, repeats } } => {
            let figures = waterfill_bench::bench_calibration(checkpoint, (*tokens).into(), (*repeats).into())?;
            show_figures(arguments, &figures, table::render_calibration)
        }
        Command::Bench { what: Bench::Moments { calibration } } => {
            show_figures(arguments, &waterfill_bench::bench_moments(calibration)?, table::render_moments)
        }
        Command::Bench { what: Bench::Rotation { checkpoint, calibration, allocation } } => {
            let figures = waterfill_bench::bench_rotation(checkpoint, calibration, allocation)?;
            show_figures(arguments, &figures, table::render_rotation)
        }
        Command::Bench { what: Bench::Load { checkpoint, prompt, once: Some(source), .. } } => {
            let source = serde_json::from_value(source.as_str().into()).context("--once")?;
            println!("{}", serde_json::to_string(&waterfill_bench::start_once(source, checkpoint, prompt)?)?);
            Ok(())
        }
        Command::Bench { what: Bench::Load { checkpoint, prompt, repeats, once: None } } => {
            let measured = Measured::new(arguments.threads)?;
            let rows = measured.load(checkpoint, prompt, (*repeats).into(), &console)?;
            console.finish("");
            show_figures(arguments, &rows, |rows| table::render_load(rows))
        }
        Command::Bench { what: Bench::Pack { checkpoint } } => {
            show_figures(arguments, &waterfill_bench::bench_pack(checkpoint)?, table::render_packing)
        }
        Command::Bench { what: Bench::Entropy { checkpoint } } => {
            show_figures(arguments, &waterfill_bench::bench_entropy(checkpoint)?, table::render_entropy)
        }
        Command::Export { path, to, out, options } => {
            execute_export(arguments, path, *to, out.as_deref(), options, &console)
        }
        Command::Decode { checkpoint, out, dtype, layers, bytes } => {
            let prefix = match (layers, bytes) {
                (Some(layers), _) => QualityPrefix::Layers(*layers as usize),
                (_, Some(bytes)) => QualityPrefix::Bytes(*bytes),
                _ => QualityPrefix::All,
            };
            let (used, read) = decode((checkpoint, prefix), out, dtype.map(|d| d.name()), &console)?;
            console.finish("");
            let layers = if used > 1 { "layers" } else { "layer" };
            show(
                arguments,
                &format!("dense checkpoint of {used} {layers}, {read} bytes, in {}", out.display()),
                "decoded",
            )
        }
    }
}

/// A table for people, or one object with all figures.
fn show_figures<T: serde::Serialize + ?Sized>(
    arguments: &Arguments,
    figures: &T,
    render: fn(&T) -> String,
) -> Result<()> {
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::to_string(figures)?),
        _ => print!("{}", render(figures)),
    }
    Ok(())
}

/// Text for people, or one object with the same text.
fn show(arguments: &Arguments, text: &str, key: &str) -> Result<()> {
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::json!({ key: text })),
        Mode::Quiet if key != "text" => {}
        _ => println!("{text}"),
    }
    Ok(())
}

fn execute_run(arguments: &Arguments, run_arguments: &RunArguments, until: Until, console: &Console) -> Result<()> {
    let (mut config, options) = (load(&run_arguments.config)?, &run_arguments.options);
    options.apply(&mut config);
    let store = Store::new(&config.store).repairing(options.repair);
    let session = Session::open(&config, &store, &options.device, console)?;
    let output = run(&session, until)?;
    console.finish("");
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::to_string(&output)?),
        _ => print!("{}", table::render(&output)),
    }
    Ok(())
}

fn execute_export(
    arguments: &Arguments,
    path: &Path,
    to: ExportTarget,
    out: Option<&Path>,
    options: &RunOptions,
    console: &Console,
) -> Result<()> {
    if let ExportTarget::HfBf16 = to {
        let out = out.context("--to hf-bf16 needs --out, a directory to create")?;
        decode((path, QualityPrefix::All), out, Some("bf16"), console)?;
        console.finish("");
        return show(arguments, &format!("dense checkpoint in {}", out.display()), "exported");
    }
    if let (ExportTarget::CompressedTensors, true) = (to, path.is_dir()) {
        let out = out.context("a tuned checkpoint --to compressed-tensors needs --out, a directory to create")?;
        let exported = export_exact(path, out, console)?;
        console.finish("");
        return show_figures(arguments, &exported, table::render_exported);
    }
    if path.is_dir() {
        anyhow::bail!("{}: a directory; types are chosen from a calibration: give a configuration", path.display());
    }
    let mut config = load(path)?;
    options.apply(&mut config);
    let store = Store::new(&config.store).repairing(options.repair);
    let session = Session::open(&config, &store, &options.device, console)?;
    if let ExportTarget::LlamaQuantizeRecipe = to {
        let files =
            write_recipes(&session, out.context("--to llama-quantize-recipe needs --out, a directory for files")?)?;
        console.finish("");
        let lines: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
        return show(arguments, &lines.join("\n"), "exported");
    }
    let output = match to {
        ExportTarget::CompressedTensors => export_compressed(&session, out)?,
        _ => export_gguf(&session, out)?,
    };
    console.finish("");
    show_figures(arguments, &output, table::render_export)
}

fn execute_original(arguments: &Arguments, run_arguments: &RunArguments, console: &Console) -> Result<()> {
    let (mut config, options) = (load(&run_arguments.config)?, &run_arguments.options);
    options.apply(&mut config);
    let store = Store::new(&config.store).repairing(options.repair);
    let output = evaluate_original(&config, &store, &options.device, console)?;
    console.finish("");
    show_figures(arguments, &output, table::render_original)
}

fn execute_sweep(
    arguments: &Arguments,
    file: &std::path::Path,
    dry: bool,
    options: &RunOptions,
    console: &Console,
) -> Result<()> {
    let mut sweep = load_sweep(file)?;
    sweep.runs.iter_mut().for_each(|run| options.apply(&mut run.config));
    if dry {
        let planned = dry_run(&sweep, &options.device, console);
        console.finish("");
        match arguments.mode() {
            Mode::Json => println!("{}", serde_json::to_string(&planned)?),
            _ => print!("{}", table::render_plan(&planned)),
        }
        return Ok(());
    }
    let measured = Measured::new(arguments.threads)?;
    let output = run_sweep(&sweep, options.repair, &options.device, &measured, console)?;
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::to_string(&output)?),
        _ => print!("{}", table::render_sweep(&output)),
    }
    match output.failures() {
        0 => Ok(()),
        failed => anyhow::bail!("{failed} of {} runs failed", output.runs.len()),
    }
}
