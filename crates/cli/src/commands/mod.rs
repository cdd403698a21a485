//! One file for each command or group of commands.

mod bench;
pub mod delta;
mod export;
mod generate;
mod inspect;
mod make_checkpoint;
mod pack;
mod points;
mod run;
mod runs;
mod show;
mod sweep;
mod train;

use anyhow::Result;
use waterfill_checkpoint::QualityPrefix;
use waterfill_config::{json_schema, train_schema, validate};
use waterfill_pipeline::{Console, Until};
use waterfill_runtime::Form;
use waterfill_store::Progress;

use show::show;

use crate::arguments::{Arguments, Command};

/// Executes the command.
pub fn execute(arguments: &Arguments, console: &Console) -> Result<()> {
    match &arguments.command {
        Command::Run(asked) | Command::Report(asked) => run::execute(arguments, asked, Until::Report, console),
        Command::Calibrate(asked) => run::execute(arguments, asked, Until::Calibrate, console),
        Command::Allocate(asked) => run::execute(arguments, asked, Until::Allocate, console),
        Command::Encode(asked) => run::execute(arguments, asked, Until::Encode, console),
        Command::Evaluate { original: true, run } => run::execute_original(arguments, run, console),
        Command::Evaluate { original: false, run } => run::execute(arguments, run, Until::Evaluate, console),
        Command::Sweep { file, dry_run, options } => sweep::execute(arguments, file, *dry_run, options, console),
        Command::Runs(asked) => runs::execute_runs(arguments, asked),
        Command::Compare { first, second, store } => runs::execute_compare(arguments, store, [first, second]),
        Command::Gc { store, forget, yes, dry_run } => runs::execute_gc(arguments, store, forget, *yes, *dry_run),
        Command::Tables { runs, out } => runs::execute_tables(arguments, runs, out),
        Command::Map { run, tensor, point, out, store } => {
            runs::execute_map(arguments, (store, run), (*point, tensor), out)
        }
        Command::ExportNotebook { sweep, out, store } => runs::execute_notebook(arguments, sweep, out, store),
        Command::Train { config, repair } => train::execute(arguments, config, *repair, console),
        Command::Validate { config } => {
            let text = format!("{} is valid: {}", config.display(), validate(config, &|note| console.note(note))?);
            show(arguments, &text, "valid")
        }
        Command::Schema { train } => {
            println!("{:#}", if *train { train_schema() } else { json_schema() });
            Ok(())
        }
        Command::Inspect { path } => show(arguments, inspect::inspect(path)?.trim_end(), "text"),
        Command::Verify { path, base } => {
            show(arguments, inspect::verify(path, base.as_deref())?.trim_end(), "verified")
        }
        Command::Generate { checkpoint, prompt, tokens, dense, coded } => {
            let form = match (dense, coded) {
                (true, _) => Form::Dense,
                (false, true) => Form::Coded,
                (false, false) => Form::Packed,
            };
            generate::execute(arguments, checkpoint, prompt, *tokens as usize, form)
        }
        Command::ServeCheck { checkpoint, prompt, tokens } => {
            generate::execute_check(arguments, checkpoint, prompt, *tokens as usize)
        }
        Command::Delta { base, fine_tune, out, lossy: Some(file) } => {
            delta::execute_lossy(arguments, base, fine_tune, out, (file, console))
        }
        Command::Delta { base, fine_tune, out, lossy: None } => {
            delta::execute(arguments, base, fine_tune, out, console)
        }
        Command::Apply { base, delta, out } => delta::execute_apply(arguments, base, delta, out, console),
        Command::Pack { file, out } => pack::execute(arguments, file, out, console),
        Command::Unpack { file, out } => pack::execute_unpack(arguments, file, out, console),
        Command::MakeCheckpoint { like, layers, seed, out } => {
            show(arguments, &make_checkpoint::make_checkpoint(like, *layers, *seed, out)?, "made")
        }
        Command::Bench { what } => bench::execute(arguments, what, console),
        Command::Export { path, to, out, options } => {
            export::execute(arguments, path, *to, out.as_deref(), options, console)
        }
        Command::Decode { checkpoint, out, dtype, layers, bytes } => {
            let prefix = match (layers, bytes) {
                (Some(layers), _) => QualityPrefix::Layers(*layers as usize),
                (_, Some(bytes)) => QualityPrefix::Bytes(*bytes),
                _ => QualityPrefix::All,
            };
            let dtype = dtype.map(|d| d.in_codec());
            export::execute_decode(arguments, (checkpoint, prefix), out, dtype, console)
        }
    }
}
