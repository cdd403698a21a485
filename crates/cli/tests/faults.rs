//! Bad days: killed processes, full and read-only disks, damage, two processes at once.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, files, pipeline};
use waterfill_fixture::{Shape, generate};

/// Times that the run is killed; `WATERFILL_KILLS=50` for a long test.
fn kills() -> u64 {
    std::env::var("WATERFILL_KILLS").map_or(8, |n| n.parse().expect("WATERFILL_KILLS is a number"))
}

/// Moments from a seed, spread evenly.
fn moment(kill: u64, longest: Duration) -> Duration {
    let golden = (kill as f64 + 0.5) * 0.618_033_988_75;
    longest.mul_f64(golden.fract())
}

/// Results without reports, which name the store, and without what a killed process left to go on from.
fn results(store: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all = files(store);
    all.retain(|(path, _)| !path.starts_with("fixture/report") && !path.to_string_lossy().contains("/."));
    all
}

#[test]
fn a_run_killed_at_any_moment_goes_on_to_the_same_bytes() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6, 1e-8]"));
    let start = Instant::now();
    place.ok(&["run", "p.yaml", "--store", "whole"]);
    let longest = start.elapsed();
    let expected = results(&place.path("whole"));
    assert!(expected.len() > 40);
    let (mut killed, mut finished) = (0, 0);
    while killed < kills() {
        let mut child = place.start(&["run", "p.yaml", "--store", "killed"], Stdio::null());
        let deadline = Instant::now() + moment(killed + finished, longest.mul_f64(0.9));
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match ended {
            None => {
                killed += 1;
                // Whatever looks finished is.
                for (path, bytes) in results(&place.path("killed")) {
                    let twin =
                        expected.iter().find(|(p, _)| *p == path).unwrap_or_else(|| panic!("{}", path.display()));
                    assert!(twin.1 == bytes, "{} differs after kill {killed}", path.display());
                }
            }
            Some(status) => {
                assert!(status.success());
                finished += 1;
                assert!(results(&place.path("killed")) == expected, "after {killed} kills");
                std::fs::remove_dir_all(place.path("killed")).unwrap();
            }
        }
    }
    place.ok(&["run", "p.yaml", "--store", "killed"]);
    assert!(results(&place.path("killed")) == expected);
    let hidden = files(&place.path("killed")).into_iter().filter(|(p, _)| p.to_string_lossy().contains("/."));
    assert_eq!(hidden.count(), 0, "nothing unfinished stays");
}

#[test]
fn an_interrupt_says_what_is_kept() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6]").replace("sequences: 24", "sequences: 2000"));
    let child = place.start(&["run", "p.yaml"], Stdio::piped());
    std::thread::sleep(Duration::from_millis(400));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("interrupted") && message.contains("the same command goes on"), "{message}");
}

#[test]
fn two_processes_share_a_store() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6, 1e-8]").replace("sequences: 24", "sequences: 200"));
    let start = || place.start(&["run", "p.yaml"], Stdio::piped());
    let children = [start(), start()];
    let outputs = children.map(|c| c.wait_with_output().unwrap());
    let logs: Vec<String> = outputs.iter().map(|o| String::from_utf8_lossy(&o.stderr).into_owned()).collect();
    assert!(outputs.iter().all(|o| o.status.success()), "{logs:?}");
    assert!(logs.iter().any(|l| l.contains("waiting for process") && l.contains("run p.yaml")), "{logs:?}");
    let computed = |stage: &str| logs.iter().filter(|l| l.contains(&format!("{stage}: done"))).count();
    assert!(computed("calibrate") + computed("measure") >= 2, "{logs:?}");
    place.ok(&["verify", "results"]);
}

#[test]
fn damaged_artifacts_are_named_and_made_again_on_request() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    let output = place.json(&["run", "p.yaml"]);
    let before = results(&place.path("results"));
    let calibration = place.path(output["artifacts"]["calibrate"].as_str().unwrap());
    let damage = |name: &str| {
        let path = calibration.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    for name in ["block-000.safetensors", "manifest.json"] {
        damage(name);
        let message = place.fails(&["run", "p.yaml"]);
        // A flip in the manifest may be in a digest: then the file that has it is named.
        let key = calibration.file_name().unwrap().to_string_lossy().into_owned();
        assert!(message.contains(&key) && message.contains("--repair"), "{name}: {message}");
        assert!(place.fails(&["verify", "results"]).contains(&key));
        place.ok(&["run", "p.yaml", "--repair"]);
        assert!(results(&place.path("results")) == before);
    }
    std::fs::remove_file(calibration.join("embedding.safetensors")).unwrap();
    assert!(place.fails(&["run", "p.yaml"]).contains("embedding.safetensors: is missing"));
    place.ok(&["run", "p.yaml", "--repair"]);
    assert!(results(&place.path("results")) == before);
}

/// Runs a shell script with mounts of its own; `None` where the system does not allow that.
fn with_mounts(place: &Place, script: &str) -> Option<(i32, String)> {
    let probe = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !probe.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: no private mounts here");
        return None;
    }
    let binary = env!("CARGO_BIN_EXE_waterfill");
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .env("WATERFILL", binary)
        .current_dir(place.path(""))
        .output()
        .unwrap();
    Some((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    std::fs::create_dir(place.path("results")).unwrap();
    place.ok(&["run", "p.yaml", "--store", "whole"]);
    // From hopeless to nearly enough: the error comes from every stage once.
    for kilobytes in [64, 300, 700, 1100, 1500, 1900, 2300] {
        let script = format!(
            "mount -t tmpfs -o size={kilobytes}k none results && \"$WATERFILL\" run p.yaml; code=$?; \
             \"$WATERFILL\" verify results >&2; mount -o remount,size=100m results && \"$WATERFILL\" --quiet run p.yaml \
             >/dev/null && cp -r results again; exit $code"
        );
        let Some((code, message)) = with_mounts(&place, &script) else { return };
        assert!(!message.contains("panicked") && !message.contains("damaged"), "{kilobytes} kB: {message}");
        if code == 0 {
            assert!(kilobytes > 64, "{message}");
        } else {
            assert_eq!(code, 1, "{kilobytes} kB: {message}");
            assert!(message.contains("No space left") && message.contains("results/fixture/"), "{message}");
        }
        assert!(results(&place.path("again")) == results(&place.path("whole")), "{kilobytes} kB");
        std::fs::remove_dir_all(place.path("again")).unwrap();
    }
}

#[test]
fn a_read_only_store_gives_what_it_has_and_names_what_it_cannot_write() {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    place.write("q.yaml", &pipeline("lambdas: [1e-7]"));
    place.ok(&["run", "p.yaml"]);
    let before = results(&place.path("results"));
    let script = |file: &str| {
        format!("mount --bind results results && mount -o remount,bind,ro results && exec \"$WATERFILL\" run {file}")
    };
    let Some((code, message)) = with_mounts(&place, &script("p.yaml")) else { return };
    assert_eq!(code, 0, "{message}");
    let (code, message) = with_mounts(&place, &script("q.yaml")).unwrap();
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("Read-only file system") && message.contains("results/fixture/allocate"), "{message}");
    assert!(results(&place.path("results")) == before);
}

#[test]
fn odd_shapes_work() {
    let base = Shape::default();
    for (name, shape) in [
        ("one layer", Shape { layers: 1, ..base.clone() }),
        ("one-row and one-column tensors", Shape { intermediate: 1, ..base.clone() }),
        ("sides that are no multiples of 16", Shape { hidden: 36, intermediate: 50, heads: 2, kv_heads: 1, ..base }),
    ] {
        let place = Place::new();
        generate(&place.path("f"), 3, &shape).unwrap();
        let yaml = pipeline("lambdas: [1e-5, 1e-17]")
            .replace("fixture:7", "path:f/model")
            .replacen("text: fixture", "text: f/calibration.txt", 1)
            .replacen("text: fixture", "text: f/validation.txt", 1)
            .replace("path: fixture", "path: f/questions");
        place.write("p.yaml", &yaml);
        let output = place.json(&["run", "p.yaml"]);
        let points = output["points"].as_array().unwrap();
        assert!(points[0]["bytes"].as_u64() < points[1]["bytes"].as_u64(), "{name}");
        assert_eq!(points[1]["kl"].as_f64(), Some(0.0), "{name}: a bit that costs nothing buys the original back");
    }
}
