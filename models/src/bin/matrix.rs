//! Writes `models/MATRIX.md`, and holds runs and sources against it.
//!
//! Run by `ci/matrix.sh`, and by the scripts that run all models. What a row says
//! comes from two places: from the reports that the harness appends to when
//! `UAIO_REPORT` is set, and from the sources, which say what is a model, what is a
//! negative control, and which mutant is killed by what.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    path::Path,
    process::ExitCode,
};

const USAGE: &str = "usage: matrix write REPORT... | check CHECKER REPORT | list";

/// The crate's folder.
const MODELS: &str = env!("CARGO_MANIFEST_DIR");

const CHECKERS: [&str; 4] = ["loom", "loom-sound", "shuttle", "plain"];

/// Of a model's row; the first is its name.
const MODEL: &[&str] = &[
    "claim",
    "theorems",
    "threads",
    "loom",
    "loom-sound",
    "shuttle",
    "plain",
    "bound because",
    "kills",
    "seconds",
];

/// Of a negative control's row.
const CONTROL: &[&str] = &[
    "control",
    "shows",
    "held by",
    "loom",
    "loom-sound",
    "shuttle",
    "seconds",
];

/// The columns that follow from the sources alone.
const FROM_SOURCES: &[&str] = &["shows", "held by", "kills"];

const CONTROLS: &str = "Negative controls";
const NOTHING: &str = "-";

/// Cells by column. One that is not there is empty.
type Row = BTreeMap<&'static str, String>;
/// Rows by full name.
type Rows = BTreeMap<String, Row>;

fn cell<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).map_or(NOTHING, String::as_str)
}

fn columns(row: &Row) -> &'static [&'static str] {
    if row.contains_key("shows") {
        CONTROL
    } else {
        MODEL
    }
}

/// What a test is, by its text.
fn row_of(body: &str) -> Option<Row> {
    let Some((_, control)) = body.split_once("Control::shows(") else {
        return body.contains(".check(").then(Row::new);
    };
    let quoted = |after: &str| {
        let (_, rest) = control.split_once(after)?;
        rest.split('"').nth(1)
    };
    // As the harness says it.
    let shows = match control.trim_start().strip_prefix("Shows::")? {
        what if what.starts_with("Assertion") => format!("\"{}\"", quoted("Assertion")?),
        what if what.starts_with("UnorderedAccess") => "unordered access".into(),
        what => what.split(')').next()?.to_lowercase(),
    };
    let held_by = quoted("held_by").unwrap_or(NOTHING).into();
    Some(Row::from([("shows", shows), ("held by", held_by)]))
}

/// The models and controls of one source, as rustfmt lays it out.
fn scan(module: &str, source: &str, rows: &mut Rows) {
    let mut modules = vec![("", module)];
    let mut test = false;
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let code = line.trim_start();
        let indent = &line[..line.len() - code.len()];
        let after = |word: &str| {
            let (_, rest) = code.split_once(word)?;
            rest.split(|c: char| c != '_' && !c.is_alphanumeric())
                .next()
        };
        if code == "}" && modules.len() > 1 && modules.last().is_some_and(|m| m.0 == indent) {
            modules.pop();
        } else if code == "#[test]" {
            test = true;
        } else if let (true, Some(name)) = (test, after("fn ")) {
            test = false;
            let end = format!("{indent}}}");
            let body: Vec<_> = lines.by_ref().take_while(|line| *line != end).collect();
            if let Some(row) = row_of(&body.join("\n")) {
                let path = modules.iter().map(|m| m.1).chain([name]);
                rows.insert(path.collect::<Vec<_>>().join("::"), row);
            }
        } else if let (true, Some(name)) = (code.ends_with('{'), after("mod ")) {
            modules.push((indent, name));
        }
    }
}

fn scan_folder(folder: &Path, module: &str, rows: &mut Rows) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let module = match (module, &*stem) {
            // No models, but the harness's own tests of what a model does.
            (_, "harness" | "bin") => continue,
            (outer, "mod") => outer.into(),
            ("", stem) => stem.into(),
            (outer, stem) => format!("{outer}::{stem}"),
        };
        if path.is_dir() {
            scan_folder(&path, &module, rows)?;
        } else {
            scan(&module, &fs::read_to_string(&path)?, rows);
        }
    }
    Ok(())
}

/// Each model that a mutant is killed by, and the mutant; with the way in which it
/// shows where that is not an assertion.
fn mutants(folder: &Path) -> io::Result<Vec<(String, String)>> {
    let mut mutants = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if path
            .extension()
            .is_none_or(|extension| extension != "patch")
        {
            let what = format!("no mutant: {}", path.display());
            return Err(io::Error::other(what));
        }
        for line in fs::read_to_string(&path)?.lines() {
            if let Some(killer) = line.strip_prefix("Killed by: ") {
                mutants.push(kill(killer, &name));
            }
        }
    }
    mutants.sort();
    Ok(mutants)
}

/// `MODEL`, or `MODEL (way)`: the model, and what its row says of the mutant.
fn kill(killer: &str, mutant: &str) -> (String, String) {
    match killer.split_once(' ') {
        Some((model, way)) => (model.into(), format!("{mutant} {way}")),
        None => (killer.into(), mutant.into()),
    }
}

/// The rows as the sources have them, and what is wrong there.
fn sources(models: &Path) -> io::Result<(Rows, Vec<String>)> {
    let mut rows = Rows::new();
    scan_folder(&models.join("src"), "", &mut rows)?;
    let mut kills = mutants(&models.join("mutants"))?;
    for (name, row) in &rows {
        if let Some(model) = row.get("held by") {
            kills.push((model.clone(), name.clone()));
        }
    }
    let mut wrong = Vec::new();
    for (model, error) in kills {
        match rows.get_mut(&model) {
            Some(row) if columns(row) == MODEL => {
                let kills = row.entry("kills").or_default();
                let comma = if kills.is_empty() { "" } else { ", " };
                let _ = write!(kills, "{comma}{error}");
            }
            _ => wrong.push(format!("{error}: there is no model {model}")),
        }
    }
    Ok((rows, wrong))
}

/// Models that could be deleted, and everything would stay green.
fn toothless(rows: &Rows) -> Vec<String> {
    let models = rows.iter().filter(|(_, row)| columns(row) == MODEL);
    let toothless = models.filter(|(_, row)| !row.contains_key("kills"));
    toothless
        .map(|(name, _)| format!("{name}: kills no mutant and holds no control"))
        .collect()
}

/// Adds what a report says to the rows that the sources have.
fn add_report(rows: &mut Rows, report: &str) -> Result<BTreeSet<String>, String> {
    let mut reported = BTreeSet::new();
    for line in report.lines() {
        let fields: Vec<_> = line.split('\t').map(|f| f.replace('|', "\\|")).collect();
        let Ok(
            [
                name,
                _,
                theorems,
                checker,
                threads,
                executions,
                reason,
                _,
                seconds,
            ],
        ) = <[String; 9]>::try_from(fields)
        else {
            return Err(format!("not nine fields: {line}"));
        };
        let Some(at) = CHECKERS.iter().position(|c| *c == checker) else {
            return Err(format!("an unknown checker: {line}"));
        };
        if name.starts_with("harness::") {
            // Its own tests.
            continue;
        }
        let Some(row) = rows.get_mut(&name) else {
            return Err(format!("not found in the sources: {name}"));
        };
        let columns = columns(row);
        let cells = [
            ("theorems", theorems.replace(",", ", ")),
            ("threads", threads),
            ("bound because", reason),
            (CHECKERS[at], executions),
        ];
        for (column, cell) in cells {
            if cell != NOTHING && columns.contains(&column) {
                row.insert(column, cell);
            }
        }
        let all = row
            .entry("seconds")
            .or_insert_with(|| [NOTHING; 4].join(", "));
        let mut each: Vec<_> = all.split(", ").collect();
        each[at] = &seconds;
        *all = each.join(", ");
        reported.insert(name);
    }
    Ok(reported)
}

/// The file, from its rows.
fn format(rows: &Rows) -> String {
    let mut sections = BTreeMap::<&str, Vec<(&str, &Row)>>::new();
    let mut controls = Vec::new();
    for (name, row) in rows {
        match name.rsplit_once("::") {
            Some((component, claim)) if columns(row) == MODEL => {
                sections.entry(component).or_default().push((claim, row));
            }
            _ => controls.push((&**name, row)),
        }
    }
    let models: usize = sections.values().map(Vec::len).sum();
    let mut seconds = [0.0; CHECKERS.len()];
    for row in rows.values() {
        for (sum, one) in seconds.iter_mut().zip(cell(row, "seconds").split(", ")) {
            *sum += one.parse().unwrap_or(0.0);
        }
    }
    let mut out = format!(
        "# What is claimed, and how far it was explored\n\n\
         Written by `ci/matrix.sh`: do not edit. {models} models, {} negative controls.\n\
         Seconds in all:",
        controls.len()
    );
    for (checker, seconds) in CHECKERS.iter().zip(seconds) {
        let _ = write!(out, " {checker} {seconds:.0},");
    }
    out.truncate(out.len() - 1);
    out.push_str(". The columns are explained [below](#legend).\n");
    let all = (sections.into_iter().map(|section| (section, MODEL)))
        .chain([((CONTROLS, controls), CONTROL)]);
    for ((section, rows), columns) in all {
        let line = "|---".repeat(columns.len());
        let _ = write!(
            out,
            "\n## {section}\n\n| {} |\n{line}|\n",
            columns.join(" | ")
        );
        for (name, row) in rows {
            let cells = columns[1..].iter().map(|column| cell(row, column));
            let cells = cells.collect::<Vec<_>>().join(" | ");
            let _ = writeln!(out, "| `{name}` | {cells} |");
        }
    }
    out.push_str(LEGEND);
    out
}

const LEGEND: &str = "
## Legend

- *claim*: the model, a test function of the module that heads the table.
- *theorems*: what it is a part of; the README's *What holds*.
- *threads*: the roles, each a thread; the main one only waits.
- *loom*: executions on loom as published, for each bound on preemptions, and over how
  many orders of the roles. *loom-sound*: the same on the patched loom, which skips
  none and needs one order. *shuttle*: random, PCT and depth-first schedules.
  *plain*: rounds with plain threads.
- *bound because*: why there is a bound where there is one, on loom as published.
- *kills*: the mutants (`mutants/`) that the model must fail with, by an assertion of
  its own unless another way is given; and the negative controls that are the same
  scenario on a wrong protocol.
- *seconds*: under each checker in the order of the columns, on the machine that
  wrote this.
- *shows*: how a negative control, a protocol that is known to be wrong, must fail;
  *held by*: the model that shows that ours does not.

A run of all models is compared with this file: all columns under loom, which
explores the same each time; under shuttle and plain threads, which draw lots, that
the model ran. Seconds are not compared.
";

/// The file's rows.
fn parse(matrix: &str) -> Rows {
    let mut rows = Rows::new();
    let mut section = "";
    for line in matrix.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title;
        } else if let Some(rest) = line.strip_prefix("| `") {
            let (name, columns) = match rest.split_once('`') {
                Some((name, _)) if section == CONTROLS => (name.to_owned(), CONTROL),
                Some((name, _)) => (format!("{section}::{name}"), MODEL),
                None => continue,
            };
            let cells = rest.trim_end_matches(" |").split(" | ");
            let cells = columns
                .iter()
                .copied()
                .zip(cells.map(str::to_owned))
                .skip(1);
            let filled = cells.filter(|(column, cell)| *column == "shows" || cell != NOTHING);
            rows.insert(name, filled.collect());
        }
    }
    rows
}

/// Where the file and what it is held against differ.
fn differences(file: &Rows, seen: &Rows, columns: &[&str], deterministic: bool) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, row) in seen {
        let Some(old) = file.get(name) else {
            differences.push(format!("{name}: has no row"));
            continue;
        };
        for column in columns {
            let (old, new) = (cell(old, column), cell(row, column));
            let lots = !deterministic && old != NOTHING && new != NOTHING;
            if old != new && !(lots && CHECKERS.contains(column)) {
                differences.push(format!("{name}: {column}: the row says {old}, now {new}"));
            }
        }
    }
    let vanished = file.keys().filter(|name| !seen.contains_key(*name));
    differences.extend(vanished.map(|name| format!("{name}: has a row, but is gone")));
    differences
}

/// Holds the report of a run of all models against the file.
fn check(file: &Rows, mut seen: Rows, checker: &str, report: &str) -> Result<Vec<String>, String> {
    let reported = add_report(&mut seen, report)?;
    seen.retain(|name, _| reported.contains(name));
    let mut file = file.clone();
    // A control that this checker cannot show is not run by it.
    file.retain(|name, row| row.contains_key(checker) || seen.contains_key(name));
    // The file has published loom's reasons; the sound one needs fewer.
    let columns: &[_] = match checker {
        "loom" => &["theorems", "threads", checker, "bound because"],
        _ => &["theorems", "threads", checker],
    };
    let deterministic = checker.starts_with("loom");
    Ok(differences(&file, &seen, columns, deterministic))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn run(arguments: &[&str]) -> Result<Vec<String>, String> {
    let models = Path::new(MODELS);
    let path = models.join("MATRIX.md");
    let (mut rows, mut wrong) = sources(models).map_err(|error| error.to_string())?;
    match arguments {
        ["write", reports @ ..] if !reports.is_empty() => {
            for report in reports {
                let path = Path::new(report);
                add_report(&mut rows, &read(path)?).map_err(|e| format!("{report}: {e}"))?;
            }
            for (name, row) in &rows {
                // A control need not show under each; and what stands next to one does
                // not run with plain threads.
                let missing = CHECKERS
                    .iter()
                    .filter(|checker| **checker != "plain" && !row.contains_key(**checker));
                for checker in missing.filter(|_| columns(row) == MODEL) {
                    wrong.push(format!("{name}: not in {checker}'s report"));
                }
                if !row.contains_key("seconds") {
                    wrong.push(format!("{name}: in no report"));
                }
            }
            fs::write(&path, format(&rows)).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        ["check", checker, report] if CHECKERS.contains(checker) => {
            let file = parse(&read(&path)?);
            let report = read(Path::new(report))?;
            wrong.extend(check(&file, rows, checker, &report)?);
        }
        ["list"] => {
            let file = parse(&read(&path)?);
            wrong.extend(differences(&file, &rows, FROM_SOURCES, true));
            wrong.extend(toothless(&rows));
        }
        _ => return Err(USAGE.into()),
    }
    Ok(wrong)
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(wrong) if wrong.is_empty() => {
            println!("matrix: models/MATRIX.md agrees");
            ExitCode::SUCCESS
        }
        Ok(wrong) => {
            for line in &wrong {
                println!("matrix: {line}");
            }
            println!(
                "matrix: {} found; a stale file is written anew by ci/matrix.sh",
                wrong.len()
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("matrix: {error}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_agrees_with_the_sources() {
        let (rows, mut wrong) = sources(Path::new(MODELS)).expect("the sources");
        let file = read(&Path::new(MODELS).join("MATRIX.md")).expect("ci/matrix.sh writes it");
        wrong.extend(differences(&parse(&file), &rows, FROM_SOURCES, true));
        assert!(
            wrong.is_empty(),
            "ci/matrix.sh is due:\n{}",
            wrong.join("\n")
        );
    }

    #[test]
    fn every_model_kills_an_error() {
        let (rows, _) = sources(Path::new(MODELS)).expect("the sources");
        let toothless = toothless(&rows);
        assert!(toothless.is_empty(), "{}", toothless.join("\n"));
    }

    const SOURCE: &str = r#"
#[test]
fn claim() {
    Model::of(&[]).check(|| ());
}

mod inner {
    #[test]
    fn error() {
        Control::shows(Shows::Hang)
            .held_by("part::claim")
            .refuted(|| ());
    }
}

#[test]
fn something_else() {
    assert_eq!(1, 1);
}

fn no_test() {
    Model::of(&[]);
}
"#;

    fn rows() -> Rows {
        let mut rows = Rows::new();
        scan("part", SOURCE, &mut rows);
        rows
    }

    const LOOM: &str = "part::claim\tpart\tOrder\tloom\t2\tunbounded 7\t-\t\t0.1\n\
                        part::inner::error\tpart\t-\tloom\t2\t3\t-\t\t0.1\n";
    const SHUTTLE: &str = "part::claim\tpart\tOrder\tshuttle\t2\trandom 5\t-\t\t2.1\n";

    fn written() -> Rows {
        let mut rows = rows();
        for report in [LOOM, SHUTTLE] {
            add_report(&mut rows, report).expect("well-formed");
        }
        parse(&format(&rows))
    }

    #[test]
    fn sources_say_what_is_a_model() {
        let rows = rows();
        assert_eq!(
            rows.keys().collect::<Vec<_>>(),
            ["part::claim", "part::inner::error"]
        );
        assert_eq!(cell(&rows["part::inner::error"], "shows"), "hang");
        assert_eq!(cell(&rows["part::inner::error"], "held by"), "part::claim");
    }

    #[test]
    fn a_kill_names_its_way() {
        let kill = |killer| kill(killer, "error");
        let is = |said: &str| ("part::claim".to_owned(), said.to_owned());
        assert_eq!(kill("part::claim"), is("error"));
        assert_eq!(kill("part::claim (deadlock)"), is("error (deadlock)"));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut expected = rows();
        add_report(&mut expected, LOOM).expect("well-formed");
        add_report(&mut expected, SHUTTLE).expect("well-formed");
        assert_eq!(written(), expected);
        assert_eq!(cell(&expected["part::claim"], "seconds"), "0.1, -, 2.1, -");
    }

    #[test]
    fn a_run_is_compared() {
        let file = written();
        let check = |checker, report: &str| check(&file, rows(), checker, report);
        let none = Ok(Vec::<String>::new());
        assert_eq!(check("loom", LOOM), none);
        assert_eq!(check("loom", &LOOM.replace("0.1", "9.9")), none);
        assert_eq!(
            check("shuttle", &SHUTTLE.replace("random 5", "random 6")),
            none
        );
        let one = |wrong: &str| Ok(vec![wrong.to_owned()]);
        assert_eq!(
            check("loom", &LOOM.replace("unbounded 7", "unbounded 8")),
            one("part::claim: loom: the row says unbounded 7, now unbounded 8")
        );
        assert_eq!(
            check("shuttle", &SHUTTLE.replace("Order", "Truth")),
            one("part::claim: theorems: the row says Order, now Truth")
        );
        assert_eq!(
            check("shuttle", ""),
            one("part::claim: has a row, but is gone")
        );
        assert!(check("loom", "part::claim\n").is_err());
        assert!(check("loom", &LOOM.replace("claim", "other")).is_err());
    }

    #[test]
    fn a_row_is_compared_with_the_sources() {
        let file = written();
        let agree = |rows: &Rows| differences(&file, rows, FROM_SOURCES, true);
        assert!(agree(&rows()).is_empty());
        let mut fewer = rows();
        fewer.remove("part::claim");
        assert_eq!(agree(&fewer), ["part::claim: has a row, but is gone"]);
        let mut more = rows();
        more.insert("part::new".into(), Row::new());
        assert_eq!(agree(&more), ["part::new: has no row"]);
        let mut other = rows();
        other
            .entry("part::inner::error".into())
            .or_default()
            .insert("shows", "leak".into());
        assert_eq!(
            agree(&other),
            ["part::inner::error: shows: the row says hang, now leak"]
        );
        assert_eq!(
            toothless(&rows()),
            ["part::claim: kills no mutant and holds no control"]
        );
    }
}
