//! Ctrl-C.

use waterfill_pipeline::Mode;

/// Exit status that shells expect from an interrupted program.
const INTERRUPTED: i32 = 130;

/// On Ctrl-C or SIGTERM, says what is kept and ends at once: whatever is finished is on disk already.
pub fn explain(mode: Mode) {
    let handler = move || {
        let message = "interrupted; what is finished is kept, the same command goes on from there";
        match mode {
            Mode::Json => eprintln!("{}", serde_json::json!({"event": "interrupted", "message": message})),
            _ => eprintln!("\nwaterfill: {message}"),
        }
        std::process::exit(INTERRUPTED);
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        eprintln!("waterfill: cannot handle Ctrl-C: {error}");
    }
}
