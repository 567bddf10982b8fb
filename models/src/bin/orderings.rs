//! Weakens the core's orderings, one at a time, and demands that a model notices.
//!
//! Run by `ci/orderings.sh`, which explains it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Mutex,
    time::Instant,
};

/// Methods of atomics, and how many arguments they take: that tells them from
/// others of the same name.
const METHODS: &[(&str, usize)] = &[
    ("load", 1),
    ("store", 2),
    ("swap", 2),
    ("fetch_add", 2),
    ("fetch_sub", 2),
    ("fetch_and", 2),
    ("fetch_or", 2),
    ("fetch_xor", 2),
    ("fetch_nand", 2),
    ("fetch_max", 2),
    ("fetch_min", 2),
    ("fetch_update", 3),
    ("compare_exchange", 4),
    ("compare_exchange_weak", 4),
];

/// How many seconds the models may take with one mutant.
const LIMIT: &str = "600";

/// What says nothing about the mutant: our cap on executions, and that no model
/// panicked at all (it was ended, or never began).
const UNCLEAR: &[&str] = &[CAP, NO_PANIC];
const CAP: &str = "not done after";
const NO_PANIC: &str = "nothing panicked";

#[derive(Clone, Debug)]
struct Mutant {
    file: String,
    line: usize,
    /// Without the line, which moves: `ring.rs write store#1 Release->Relaxed`.
    name: String,
    start: usize,
    end: usize,
    with: String,
}

/// A source with its comments and strings blanked, so that offsets agree.
fn blank_comments(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut string = false;
    while let Some(c) = rest.chars().next() {
        if !string && rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            out.extend(rest[..end].chars().flat_map(|c| [' '].repeat(c.len_utf8())));
            rest = &rest[end..];
            continue;
        }
        // A character that would be taken for the start of a string.
        if !string && rest.starts_with("'\"'") {
            out.push_str("   ");
            rest = &rest[3..];
            continue;
        }
        if c == '"' {
            string = !string;
        }
        if string && c == '\\' {
            let n = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
            out.push_str(&" ".repeat(n));
            rest = &rest[n..];
            continue;
        }
        if string && c != '"' && c != '\n' {
            out.push_str(&" ".repeat(c.len_utf8()));
        } else {
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// The end of the bracket that opens at `open`.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (i, c) in code[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth -= 1;
                if depth == 0 {
                    return open + i;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// The arguments between the brackets, as ranges.
fn arguments(code: &str, open: usize) -> Vec<(usize, usize)> {
    let close = closing(code, open);
    let mut ranges = Vec::new();
    let (mut depth, mut start) = (0, open + 1);
    for (i, c) in code[open + 1..close].char_indices() {
        let at = open + 1 + i;
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                ranges.push((start, at));
                start = at + 1;
            }
            _ => {}
        }
    }
    if !code[start..close].trim().is_empty() {
        ranges.push((start, close));
    }
    ranges
}

/// The next weaker orderings of an operation; "" deletes the fence.
fn weaker(method: &str, argument: usize, ordering: &str) -> &'static [&'static str] {
    match (method, argument, ordering) {
        ("fence", _, "SeqCst") => &["AcqRel", ""],
        ("fence", _, "AcqRel") => &["Acquire", "Release", ""],
        ("fence", _, "Acquire" | "Release") => &[""],
        ("load", _, "SeqCst") => &["Acquire"],
        ("store", _, "SeqCst") => &["Release"],
        ("compare_exchange" | "compare_exchange_weak", 3, "SeqCst") => &["Acquire"],
        ("fetch_update", 1, "SeqCst") => &["Acquire"],
        (_, _, "SeqCst") => &["AcqRel"],
        (_, _, "AcqRel") => &["Acquire", "Release"],
        (_, _, "Acquire" | "Release") => &["Relaxed"],
        _ => &[],
    }
}

/// Every mutant of one file, or what about the file is not as it must be.
fn mutants(file: &str, source: &str) -> Result<Vec<Mutant>, String> {
    let code = blank_comments(source);
    let mut found = Vec::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut function = String::new();
    let mut understood = 0;
    let mut at = 0;
    let word_end = |from: usize| {
        from + code[from..]
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(code.len() - from)
    };
    while at < code.len() {
        let Some(next) = code[at..].find(|c: char| c.is_alphabetic() || c == '_') else {
            break;
        };
        let start = at + next;
        let end = word_end(start);
        at = end;
        let word = &code[start..end];
        if word == "fn" {
            let name = end + code[end..].len() - code[end..].trim_start().len();
            function = code[name..word_end(name)].to_owned();
            continue;
        }
        if !code[end..].starts_with('(') {
            continue;
        }
        let arguments = arguments(&code, end);
        let is_fence = word == "fence" && arguments.len() == 1;
        let is_method = code[..start].ends_with('.') && METHODS.contains(&(word, arguments.len()));
        if !is_fence && !is_method {
            continue;
        }
        let line = 1 + code[..start].matches('\n').count();
        let first = match word {
            "fence" | "load" | "fetch_update" => 0,
            "compare_exchange" | "compare_exchange_weak" => 2,
            _ => 1,
        };
        let number = counts.entry(format!("{function} {word}")).or_default();
        *number += 1;
        let last = if word == "fetch_update" {
            2
        } else {
            arguments.len()
        };
        for (i, &(from, to)) in arguments.iter().enumerate().take(last).skip(first) {
            understood += 1;
            let text = code[from..to].trim();
            let Some(ordering) = text.strip_prefix("Ordering::") else {
                return Err(format!(
                    "{file}:{line}: {word} whose ordering is not literal: {text}"
                ));
            };
            for weak in weaker(word, i, ordering) {
                let which = match (word, i) {
                    (_, 3) | ("fetch_update", 1) => " on failure",
                    _ => "",
                };
                let what = if weak.is_empty() { "deleted" } else { weak };
                let (start, end, with) = if weak.is_empty() {
                    let close = closing(&code, end);
                    (start, close + 1, "()".to_owned())
                } else {
                    let lead = code[from..to].len() - code[from..to].trim_start().len();
                    (
                        from + lead,
                        from + lead + text.len(),
                        format!("Ordering::{weak}"),
                    )
                };
                found.push(Mutant {
                    file: file.to_owned(),
                    line,
                    name: format!("{file} {function} {word}#{number}{which} {ordering}->{what}"),
                    start,
                    end,
                    with,
                });
            }
        }
    }
    // An ordering that is nobody's argument: passed by a path, or kept for later.
    let orderings = code.matches("Ordering").count() - imports(&code);
    if orderings != understood {
        return Err(format!(
            "{file}: {orderings} orderings, of which {understood} are arguments of operations"
        ));
    }
    found.extend(rechecks(file, source, &code)?);
    Ok(found)
}

/// How often the type is named by an import.
fn imports(code: &str) -> usize {
    let mut count = 0;
    let mut within = false;
    for line in code.lines() {
        let line = line.trim_start();
        let line = line.strip_prefix("pub").unwrap_or(line);
        within |= line
            .trim_start_matches("(crate)")
            .trim_start()
            .starts_with("use ");
        if within {
            count += line.matches("Ordering").count();
            within = !line.contains(';');
        }
    }
    count
}

/// `// Re-check: ...` marks the `if` below it, which lets go on or turns away: one
/// mutant takes its condition for false, another for true.
fn rechecks(file: &str, source: &str, code: &str) -> Result<Vec<Mutant>, String> {
    let mut found = Vec::new();
    let mut marks = BTreeMap::new();
    for (mark, _) in source.match_indices("// Re-check:") {
        let line = 1 + source[..mark].matches('\n').count();
        let Some(at) = code[mark..].find("if ") else {
            return Err(format!(
                "{file}:{line}: a re-check is marked, and no `if` follows"
            ));
        };
        let between = code[mark..mark + at].trim();
        if !between.is_empty() {
            return Err(format!(
                "{file}:{line}: between the mark and its `if`: {between}"
            ));
        }
        let start = mark + at + 3;
        let end = start + code[start..].find(" {").unwrap_or(0);
        let function = (code[..mark].rmatch_indices("fn ").next())
            .map(|(at, _)| &code[at + 3..])
            .and_then(|rest| rest.split(['(', '<']).next())
            .unwrap_or("?");
        let nth = marks.entry(function).or_insert(0);
        *nth += 1;
        let condition = &source[start..end];
        for (what, with) in [
            ("never", format!("false && ({condition})")),
            ("always", format!("true || ({condition})")),
        ] {
            found.push(Mutant {
                file: file.to_owned(),
                line,
                name: format!("{file} {function} re-check#{nth} {what}"),
                start,
                end,
                with,
            });
        }
    }
    Ok(found)
}

/// What is known of a mutant that no model can kill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    Equivalent,
    Invisible,
}

/// `NAME: equivalent|invisible: argument`, one entry per paragraph.
fn known(text: &str) -> Result<BTreeMap<String, Known>, String> {
    let mut entries = BTreeMap::new();
    for paragraph in text.split("\n\n") {
        let entry: Vec<_> = paragraph.lines().filter(|l| !l.starts_with('#')).collect();
        let entry = entry.join(" ");
        if entry.trim().is_empty() {
            continue;
        }
        let mut parts = entry.splitn(3, ": ");
        let (name, kind, argument) = (parts.next(), parts.next(), parts.next());
        let kind = match kind {
            Some("equivalent") => Known::Equivalent,
            Some("invisible") => Known::Invisible,
            _ => return Err(format!("neither `equivalent` nor `invisible`: {entry}")),
        };
        if argument.is_none_or(|argument| argument.trim().len() < 40) {
            return Err(format!("without an argument: {entry}"));
        }
        entries.insert(name.unwrap_or_default().trim().to_owned(), kind);
    }
    Ok(entries)
}

enum Verdict {
    Killed(String),
    Survived,
    /// A model hit its cap: an error.
    Unclear(String),
    /// It does not compile: the tool's fault, and an error.
    Broken(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(by) => write!(f, "killed by {by}"),
            Self::Survived => f.write_str("survived"),
            Self::Unclear(by) => write!(f, "unclear: {by}"),
            Self::Broken(why) => write!(f, "does not build: {why}"),
        }
    }
}

/// A copy of the workspace that one thread mutates.
struct Scratch {
    workspace: PathBuf,
    /// cargo and its arguments up to the subcommand's.
    cargo: Vec<String>,
}

impl Scratch {
    fn judge(&self, mutant: &Mutant, known: &[(String, f64)]) -> std::io::Result<Verdict> {
        let path = self.workspace.join("core/src").join(&mutant.file);
        let original = fs::read_to_string(&path)?;
        let mut source = original.clone();
        source.replace_range(mutant.start..mutant.end, &mutant.with);
        fs::write(&path, source)?;
        let verdict = self.run(&mutant.file, known);
        fs::write(&path, original)?;
        verdict
    }

    /// Builds the models; the inner error is the compiler's.
    fn build(&self) -> std::io::Result<Result<String, String>> {
        let built = Command::new("cargo")
            .args(&self.cargo)
            .args([
                "--no-run",
                "--message-format=json-render-diagnostics",
                "--quiet",
            ])
            .current_dir(&self.workspace)
            .env_remove("CARGO_TARGET_DIR")
            .output()?;
        if !built.status.success() {
            let errors = String::from_utf8_lossy(&built.stderr);
            let first = errors.lines().find(|line| line.starts_with("error"));
            return Ok(Err(first.unwrap_or("?").to_owned()));
        }
        let messages = String::from_utf8_lossy(&built.stdout);
        let binary = messages
            .split("\"executable\":\"")
            .filter_map(|rest| rest.split('"').next())
            .find(|path| path.contains("uaio_models"));
        Ok(binary.map(str::to_owned).ok_or("no test binary".into()))
    }

    fn run(&self, file: &str, known: &[(String, f64)]) -> std::io::Result<Verdict> {
        let binary = match self.build()? {
            Ok(binary) => binary,
            Err(why) => return Ok(Verdict::Broken(why)),
        };
        for models in chunks(known, file) {
            if let Some(by) = self.models(&binary, &models)? {
                return Ok(Verdict::Killed(by));
            }
        }
        Ok(Verdict::Survived)
    }

    /// All models and how many seconds each takes, without a mutant.
    fn baseline(&self) -> Result<Vec<(String, f64)>, String> {
        let binary = self.build().map_err(|e| e.to_string())?;
        let output = Command::new(binary?)
            .args(["--test-threads=1", "--skip=checker::", "--skip=harness::"])
            .current_dir(self.workspace.join("models"))
            .env("UAIO_SOUND", "1")
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!("a model fails without a mutant:\n{said}"));
        }
        let models = said.lines().filter_map(|line| {
            // The runner has begun the line: `test NAME ... `.
            let (name, rest) = line.split_once(": loom, ")?;
            let name = name.rsplit(' ').next()?;
            let seconds = rest.split("; ").find_map(|part| part.strip_suffix(" s"))?;
            Some((name.to_owned(), seconds.parse().ok()?))
        });
        Ok(models.collect())
    }

    /// Runs models until one fails, and tells which.
    fn models(&self, binary: &str, which: &[&str]) -> std::io::Result<Option<String>> {
        let said = self.workspace.join("target/said");
        // Ends it also when it says nothing any more.
        let mut child = Command::new("timeout")
            .arg(LIMIT)
            .arg(binary)
            .args(["--exact", "--test-threads=1", "--format=pretty"])
            .args(which)
            .current_dir(self.workspace.join("models"))
            .env("UAIO_SOUND", "1")
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&said)?)
            .spawn()?;
        let output = child.stdout.take().map(BufReader::new);
        let mut running = String::from("?");
        let mut failed = None;
        for line in output.into_iter().flat_map(BufReader::lines) {
            let line = line?;
            if let Some(n) = line.strip_prefix("running ") {
                let all = n.split(' ').next() == Some(&which.len().to_string());
                assert!(all, "of {} models: {line}", which.len());
            } else if let Some(rest) = line.strip_prefix("test ") {
                if let Some((name, verdict)) = rest.split_once(" ... ") {
                    running = name.to_owned();
                    if verdict == "FAILED" {
                        failed = Some(running.clone());
                        break;
                    }
                }
            } else if line == "FAILED" {
                failed = Some(running.clone());
                break;
            }
        }
        if failed.is_some() {
            // The others' verdicts are not needed; `timeout` passes it on.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
        }
        let status = child.wait()?;
        let failed = match failed {
            None if !status.success() => Some(format!("{running} (it aborts)")),
            failed => failed,
        };
        let said = fs::read_to_string(said).unwrap_or_default();
        Ok(failed.map(|model| format!("{model}: {}", reason(&said))))
    }
}

/// Those of the mutant's own module first, and quick ones before slow ones.
fn chunks<'a>(known: &'a [(String, f64)], file: &str) -> Vec<Vec<&'a str>> {
    const QUICK: f64 = 0.3;
    let module = file.trim_end_matches("rs").replace('.', "::");
    let mut chunks = vec![Vec::new(); 4];
    for (name, seconds) in known {
        let own = name.contains(&module);
        chunks[usize::from(!own) + 2 * usize::from(*seconds > QUICK)].push(name.as_str());
    }
    chunks.retain(|chunk| !chunk.is_empty());
    chunks
}

/// What the first panic said.
fn reason(said: &str) -> String {
    let mut lines = (said.lines()).skip_while(|line| !line.contains("panicked at"));
    let what = lines.nth(1).map_or(NO_PANIC, str::trim);
    what.chars().take(70).collect()
}

/// The sources below `folder`, but for the facade's: what it wraps is the checkers',
/// and what it ships no model runs.
fn list_sources(folder: &Path, prefix: &str, files: &mut Vec<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            if name != "sync" {
                list_sources(&path, &format!("{name}/"), files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(name);
        }
    }
    files.sort();
    Ok(())
}

fn run() -> Result<ExitCode, String> {
    let mut args = std::env::args().skip(1);
    let usage = "orderings SOURCES KNOWN [FILE] -- SCRATCH... -- CARGO-ARGUMENT...";
    let sources = PathBuf::from(args.next().ok_or(usage)?);
    let list = args.next().ok_or(usage)?;
    let mut only = None;
    for arg in args.by_ref().take_while(|arg| arg != "--") {
        only = Some(arg);
    }
    let scratch: Vec<PathBuf> = args
        .by_ref()
        .take_while(|arg| arg != "--")
        .map(Into::into)
        .collect();
    let cargo: Vec<String> = args.collect();

    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let known = known(&read(Path::new(&list))?)?;
    let mut files = Vec::new();
    list_sources(&sources, "", &mut files).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for file in &files {
        all.extend(mutants(file, &read(&sources.join(file))?)?);
    }
    for name in known.keys() {
        if !all.iter().any(|mutant| mutant.name == *name) {
            return Err(format!("{list}: there is no such mutant: {name}"));
        }
    }
    if let Some(only) = &only {
        if !files.contains(only) {
            return Err(format!("no such file in {}: {only}", sources.display()));
        }
        all.retain(|mutant| mutant.file == *only);
    }

    // What fails by itself kills every mutant.
    let unchanged = Scratch {
        workspace: scratch.first().cloned().ok_or(usage)?,
        cargo: cargo.clone(),
    };
    let models = unchanged.baseline()?;
    println!("{} models, without a mutant: all pass", models.len());

    let total = all.len();
    let queue = Mutex::new(VecDeque::from(all));
    let counts = Mutex::new([0_usize; 5]);
    let worker = |workspace: PathBuf| -> Result<(), String> {
        let scratch = Scratch {
            workspace,
            cargo: cargo.clone(),
        };
        loop {
            let Some(mutant) = queue.lock().map_err(|e| e.to_string())?.pop_front() else {
                return Ok(());
            };
            let start = Instant::now();
            let verdict = scratch
                .judge(&mutant, &models)
                .map_err(|error| error.to_string())?;
            let verdict = match verdict {
                Verdict::Killed(by) if UNCLEAR.iter().any(|say| by.contains(say)) => {
                    Verdict::Unclear(by)
                }
                verdict => verdict,
            };
            let entry = known.get(&mutant.name);
            let (column, note) = match (&verdict, entry) {
                (Verdict::Killed(_), None) => (0, String::new()),
                (Verdict::Killed(_), Some(kind)) => (4, format!(", and is listed as {kind:?}")),
                (Verdict::Survived, Some(Known::Equivalent)) => (1, " (equivalent)".into()),
                (Verdict::Survived, Some(Known::Invisible)) => (2, " (invisible)".into()),
                // Not a wrong one, but more of them.
                (Verdict::Unclear(by), Some(Known::Equivalent)) if by.contains(CAP) => {
                    (1, " (equivalent)".into())
                }
                (Verdict::Survived, None) => (3, " !".into()),
                (Verdict::Unclear(_) | Verdict::Broken(_), _) => (4, String::new()),
            };
            let mut counts = counts.lock().map_err(|e| e.to_string())?;
            counts[column] += 1;
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{:>6.1} s  core/src/{}:{}: {}: {verdict}{note}",
                seconds,
                mutant.file,
                mutant.line,
                mutant.name.split_once(' ').map_or("", |(_, rest)| rest),
            );
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (scratch.into_iter())
            .map(|dir| scope.spawn(|| worker(dir)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err("a worker panicked".into()))
        })
    })?;
    let [killed, equivalent, invisible, survived, errors] =
        counts.into_inner().map_err(|e| e.to_string())?;
    if errors > 0 {
        println!(
            "{errors} errors: mutants that do not build, caps, or entries that no longer hold"
        );
    }
    println!(
        "{total} mutants, {killed} killed, {equivalent} equivalent, {invisible} invisible, \
         {survived} survived"
    );
    let ok = survived == 0 && errors == 0;
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("orderings: {error}");
        ExitCode::from(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(source: &str) -> Vec<String> {
        let mutants = mutants("a.rs", source).expect("it is as it must be");
        mutants.into_iter().map(|mutant| mutant.name).collect()
    }

    #[test]
    fn each_legal_step_is_taken() {
        let source = "fn f() { w.compare_exchange(a, b, Ordering::AcqRel, Ordering::Acquire); }";
        let expected = [
            "a.rs f compare_exchange#1 AcqRel->Acquire",
            "a.rs f compare_exchange#1 AcqRel->Release",
            "a.rs f compare_exchange#1 on failure Acquire->Relaxed",
        ];
        assert_eq!(names(source), expected);
        let source = "fn g() { fence(Ordering::SeqCst) }";
        let expected = [
            "a.rs g fence#1 SeqCst->AcqRel",
            "a.rs g fence#1 SeqCst->deleted",
        ];
        assert_eq!(names(source), expected);
        let source = "fn h() {\n// Re-check: it.\nif now == seen {} }";
        let expected = ["a.rs h re-check#1 never", "a.rs h re-check#1 always"];
        assert_eq!(names(source), expected);
    }

    #[test]
    fn an_ordering_that_is_not_an_operations_argument_is_refused() {
        for source in [
            "fn f(o: O) { w.load(o) }",
            "fn f() { AtomicU64::load(w, Ordering::Acquire) }",
            "fn f() { let o = Ordering::Acquire; }",
            "fn f() { w.update(Ordering::Acquire, g) }",
            "fn f() { w.fetch_max(1, o) }",
            "fn f() { w.fetch_update(o, o, g) }",
            "fn f() { let quote = '\"'; w.load(o) }",
            "// Re-check: what?\nfn f() { g() }",
        ] {
            assert!(mutants("a.rs", source).is_err(), "{source}");
        }
    }

    /// What the list says is of this source, and each operation is understood.
    #[test]
    fn the_list_is_about_the_core_as_it_is() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources = root.join("../core/src");
        let mut files = Vec::new();
        list_sources(&sources, "", &mut files).expect("the core");
        let mut all = Vec::new();
        for file in &files {
            let source = fs::read_to_string(sources.join(file)).expect("a source");
            all.extend(mutants(file, &source).expect("it is as it must be"));
        }
        assert!(all.len() > 50, "{} mutants", all.len());
        let list = fs::read_to_string(root.join("orderings.txt")).expect("the list");
        for name in known(&list).expect("it is as it must be").keys() {
            assert!(all.iter().any(|mutant| mutant.name == *name), "{name}");
        }
    }
}
