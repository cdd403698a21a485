//! Progress for people (bars or lines) and for programs (JSON lines on standard error).

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use waterfill_store::Progress;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bars on a terminal, lines elsewhere.
    Human,
    /// Nothing.
    Quiet,
    /// One JSON object a line on standard error.
    Json,
}

/// Time between two lines about the same phase.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

struct Phase {
    name: String,
    units: u64,
    done: u64,
    start: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

/// Display on a terminal: a bar for the whole command and one for the phase, or in a sweep one row.
enum View {
    Lines,
    Bars(MultiProgress, ProgressBar),
    Row(MultiProgress, ProgressBar),
}

/// Receiver of progress of a whole command, or of one run of a sweep.
pub struct Console {
    mode: Mode,
    /// Name of the run in a sweep.
    run: Option<String>,
    view: View,
    stage: Mutex<String>,
    phase: Mutex<Option<Phase>>,
}

impl Console {
    /// A console in a mode.
    pub fn new(mode: Mode) -> Self {
        let view = match mode == Mode::Human && std::io::stderr().is_terminal() {
            true => {
                let all = MultiProgress::new();
                let overall = all.add(ProgressBar::new(0));
                overall.set_style(style("{msg:20} {wide_bar} {pos}/{len} steps, {elapsed}"));
                View::Bars(all, overall)
            }
            false => View::Lines,
        };
        Self { mode, run: None, view, stage: Mutex::default(), phase: Mutex::default() }
    }

    /// A console for one run of a sweep: a row of the live table, or lines that begin with its name.
    pub fn row(&self, run: &str) -> Self {
        let view = match &self.view {
            View::Lines => View::Lines,
            View::Bars(all, _) | View::Row(all, _) => {
                let row = all.add(ProgressBar::new(0));
                row.set_style(style("{prefix:40} {pos:>3}/{len:3} {wide_msg}"));
                row.set_prefix(run.to_string());
                row.set_message("waiting");
                View::Row(all.clone(), row)
            }
        };
        Self { mode: self.mode, run: Some(run.into()), view, stage: Mutex::default(), phase: Mutex::default() }
    }

    /// Number of steps of the whole command.
    pub fn steps(&self, total: u64) {
        if let View::Bars(_, bar) | View::Row(_, bar) = &self.view {
            bar.set_length(total);
        }
    }

    /// A step begins.
    pub fn step(&self, name: &str) {
        self.end_phase();
        *self.stage.lock().expect("no panic while held") = name.into();
        match &self.view {
            View::Bars(_, bar) | View::Row(_, bar) => bar.set_message(name.to_string()),
            View::Lines => self.event("stage", &[("stage", name.into())], &format!("{name} ...")),
        }
    }

    /// The step is done; `found` says that its result was there already, `peak` how many bytes of
    /// memory it took.
    pub fn step_done(&self, found: bool, seconds: f64, peak: Option<u64>) {
        self.end_phase();
        let name = self.stage.lock().expect("no panic while held").clone();
        let how = match (found, peak) {
            (true, _) => "found in the store".to_string(),
            (false, Some(peak)) => format!("done in {seconds:.1} s, {:.2} GB of memory", peak as f64 / 1e9),
            (false, None) => format!("done in {seconds:.1} s"),
        };
        match &self.view {
            View::Bars(all, bar) => {
                bar.inc(1);
                let _ = all.println(format!("{name}: {how}"));
            }
            View::Row(_, bar) => bar.inc(1),
            View::Lines => {
                let mut fields =
                    vec![("stage", name.as_str().into()), ("cached", found.into()), ("seconds", seconds.into())];
                fields.extend(peak.filter(|_| !found).map(|peak| ("peak_memory_bytes", peak.into())));
                self.event("done", &fields, &format!("{name}: {how}"));
            }
        }
    }

    /// Removes the bars; a row stays, with its last words.
    pub fn finish(&self, words: &str) {
        self.end_phase();
        match &self.view {
            View::Bars(all, bar) => {
                bar.finish_and_clear();
                let _ = all.clear();
            }
            View::Row(_, bar) => bar.finish_with_message(words.to_string()),
            View::Lines if self.run.is_some() => self.event("run", &[("state", words.into())], words),
            View::Lines => {}
        }
    }

    fn event(&self, kind: &str, fields: &[(&str, serde_json::Value)], line: &str) {
        match self.mode {
            Mode::Quiet => {}
            Mode::Human => match &self.run {
                Some(run) => eprintln!("[{run}] {line}"),
                None => eprintln!("{line}"),
            },
            Mode::Json => {
                let mut map = serde_json::Map::from_iter([("event".to_string(), kind.into())]);
                map.extend(self.run.iter().map(|run| ("run".to_string(), run.as_str().into())));
                map.extend(fields.iter().map(|(k, v)| (k.to_string(), v.clone())));
                eprintln!("{}", serde_json::Value::Object(map));
            }
        }
    }

    fn end_phase(&self) {
        if let Some(phase) = self.phase.lock().expect("no panic while held").take()
            && let Some(bar) = phase.bar
        {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a fixed template").progress_chars("=> ")
}

impl Progress for Console {
    fn start(&self, phase: &str, units: u64) {
        self.end_phase();
        let bar = match &self.view {
            View::Bars(all, _) => {
                let bar = all.add(ProgressBar::new(units));
                bar.set_style(style("  {msg:18} {wide_bar} {pos}/{len}, {per_sec}, {eta} left"));
                bar.set_message(phase.to_string());
                Some(bar)
            }
            _ => None,
        };
        let now = Instant::now();
        let state = Phase { name: phase.into(), units, done: 0, start: now, last_line: now, bar };
        *self.phase.lock().expect("no panic while held") = Some(state);
    }

    fn advance(&self, units: u64) {
        let mut guard = self.phase.lock().expect("no panic while held");
        let Some(phase) = guard.as_mut() else { return };
        phase.done += units;
        if let Some(bar) = &phase.bar {
            bar.inc(units);
            return;
        }
        if let View::Row(_, row) = &self.view {
            let stage = self.stage.lock().expect("no panic while held");
            row.set_message(format!("{stage}: {} {}/{}", phase.name, phase.done, phase.units));
            return;
        }
        if phase.last_line.elapsed() >= LINE_INTERVAL {
            phase.last_line = Instant::now();
            let rate = phase.done as f64 / phase.start.elapsed().as_secs_f64();
            let left = (phase.units - phase.done.min(phase.units)) as f64 / rate;
            let line = format!("  {} {}/{}, {rate:.1} a second, {left:.0} s left", phase.name, phase.done, phase.units);
            let fields = [
                ("phase", phase.name.as_str().into()),
                ("done", phase.done.into()),
                ("units", phase.units.into()),
                ("seconds_left", left.into()),
            ];
            self.event("progress", &fields, &line);
        }
    }

    fn note(&self, message: &str) {
        match &self.view {
            View::Bars(all, _) => {
                let _ = all.println(message);
            }
            View::Row(all, _) => {
                let _ = all.println(format!("[{}] {message}", self.run.as_deref().unwrap_or_default()));
            }
            View::Lines => self.event("note", &[("message", message.into())], message),
        }
    }
}
