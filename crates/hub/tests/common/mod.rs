//! A hub on this machine: the two addresses that downloads use, ranges, and trouble on request.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Commit of everything on it.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The one model, and dataset.
pub const ID: &str = "someone/some-model";

/// What it does besides answering.
#[derive(Default)]
pub struct Trouble {
    /// Token without which files are refused.
    pub token: Option<String>,
    /// File, and how many bytes of an answer are sent before the connection breaks, how many times.
    pub breaks: Option<(String, usize, usize)>,
}

pub struct Server {
    pub endpoint: String,
    /// Its files.
    pub files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    pub trouble: Arc<Mutex<Trouble>>,
    /// Requests for files, with their ranges.
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            files: Arc::new(Mutex::new(files)),
            trouble: Arc::default(),
            requests: Arc::default(),
        };
        let (files, trouble, requests) = (server.files.clone(), server.trouble.clone(), server.requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &files.lock().unwrap().clone(), &mut trouble.lock().unwrap(), &requests);
            }
        });
        server
    }

    /// File requests so far that asked for more than a byte.
    pub fn downloads(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().filter(|r| !r.ends_with("bytes=0-0")).cloned().collect()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    trouble: &mut Trouble,
    requests: &Mutex<Vec<String>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let headers: BTreeMap<String, String> = lines
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_string())))
        .collect();
    let mut send = |status: &str, extra: &str, length: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{extra}\r\n");
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    let rest = path.strip_prefix("/api/models/").or_else(|| path.strip_prefix("/api/datasets/"));
    if let Some(rest) = rest {
        let known = [format!("{ID}/revision/main"), format!("{ID}/revision/{COMMIT}")];
        if !known.iter().any(|k| k == rest) {
            // The real one says 401 about models that do not exist, too.
            return send(if rest.starts_with(ID) { "404 Not Found" } else { "401 Unauthorized" }, "", 0, b"");
        }
        let names: Vec<String> = files.keys().map(|f| format!("{{\"rfilename\": \"{f}\"}}")).collect();
        let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(", "));
        return send("200 OK", "Content-Type: application/json\r\n", body.len(), body.as_bytes());
    }
    let name = path.trim_start_matches("/datasets").strip_prefix(&format!("/{ID}/resolve/{COMMIT}/"));
    let name = name.unwrap_or_default().to_string();
    let Some(bytes) = files.get(&name) else {
        return send("404 Not Found", "", 0, b"");
    };
    let token = trouble.token.as_ref().map(|t| format!("Bearer {t}"));
    if token.is_some() && headers.get("authorization") != token.as_ref() {
        return send("401 Unauthorized", "", 0, b"");
    }
    let range = headers.get("range").cloned().unwrap_or_default();
    requests.lock().unwrap().push(format!("{name} {range}"));
    let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or(0);
    let end = end.parse().map_or(bytes.len(), |e: usize| (e + 1).min(bytes.len()));
    if start >= bytes.len() {
        return send("416 Range Not Satisfiable", "", 0, b"");
    }
    let (part, last) = (&bytes[start..end], end - 1);
    let extra = format!(
        "ETag: \"{}-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{last}/{}\r\n",
        name.replace('/', "-"),
        bytes.len(),
        bytes.len()
    );
    match &mut trouble.breaks {
        Some((file, sent, times)) if *file == name && *times > 0 && part.len() > *sent => {
            *times -= 1;
            send("206 Partial Content", &extra, part.len(), &part[..*sent]);
        }
        _ => send("206 Partial Content", &extra, part.len(), part),
    }
}
