//! The timeline of a failed execution, as text: threads as columns, operations
//! as rows, and at last the failure.

use std::{collections::BTreeMap, fmt::Write as _, panic::Location};

use uaio_core::sync::timeline::{Change, Object, Step, What};

/// Of a row, where the columns leave room for it.
const WIDTH: usize = 150;
/// So many rows of set-up are shown; if there are more, none.
const MOST_SET_UP: usize = 12;
/// So many rows at the end are shown.
const MOST: usize = 400;

/// Short names, the same in every replay: by the order of first use.
#[derive(Default)]
struct Names {
    objects: BTreeMap<u64, String>,
    kinds: BTreeMap<char, usize>,
    pointers: BTreeMap<u64, usize>,
}

impl Names {
    fn of(&mut self, object: Object) -> &str {
        self.objects.entry(object.number).or_insert_with(|| {
            let letter = match object.kind {
                "UnsafeCell" => 'c',
                "Parker" => 'p',
                "Track" => 't',
                _ => 'a',
            };
            let n = self.kinds.entry(letter).or_default();
            *n += 1;
            format!("{letter}{n}")
        })
    }

    fn value(&mut self, kind: &str, bits: u64) -> String {
        let below = match kind {
            "AtomicBool" => return (bits != 0).to_string(),
            "AtomicPtr" if bits == 0 => return "null".into(),
            "AtomicPtr" => {
                let next = self.pointers.len() + 1;
                let n = self.pointers.entry(bits).or_insert(next);
                return format!("ptr{n}");
            }
            "AtomicU32" => u64::from(u32::MAX) - bits,
            _ => u64::MAX - bits,
        };
        match below {
            0 => "MAX".into(),
            1..1_000 => format!("MAX-{below}"),
            _ if bits < 100_000 => bits.to_string(),
            _ => format!("{bits:#x}"),
        }
    }

    fn operation(&mut self, what: What, threads: &[String]) -> String {
        match what {
            What::Atomic {
                object,
                method,
                change,
                order,
            } => {
                let mut value = |bits| self.value(object.kind, bits);
                let change = match change {
                    Change::Read(bits) | Change::Written(bits) => value(bits),
                    Change::Replaced(old, new) => format!("{} -> {}", value(old), value(new)),
                    Change::Kept(found, expected) => {
                        format!("failed, {} is not {}", value(found), value(expected))
                    }
                };
                format!("{} {method} {change} {order:?}", self.of(object))
            }
            What::Fence(order) => format!("fence {order:?}"),
            What::Use(method, object) => format!("{method} {}", self.of(object)),
            What::Other(method, thread) => format!("{method} {}", name_of(threads, thread)),
            What::Hint(method) => method.into(),
        }
    }
}

fn name_of(threads: &[String], thread: usize) -> &str {
    threads.get(thread).map_or("another", String::as_str)
}

/// The threads' names, those of one name numbered.
fn threads(roles: &[&str]) -> Vec<String> {
    let numbered = roles.iter().enumerate().map(|(i, name)| {
        let alike = |roles: &[&str]| roles.iter().filter(|other| *other == name).count();
        match alike(roles) {
            1 => (*name).to_owned(),
            _ => format!("{name} {}", alike(&roles[..=i])),
        }
    });
    std::iter::once("main".to_owned()).chain(numbered).collect()
}

struct Row {
    /// Counted from 1, all rows included.
    step: usize,
    thread: usize,
    text: String,
    at: &'static Location<'static>,
    times: usize,
}

/// Writes what was done by the threads: main, and then `roles` in the order in
/// which they were spawned. The failure is `message`, in thread `failed`.
pub(super) fn write(steps: &[Step], roles: &[&str], failed: usize, message: &str) -> String {
    let threads = threads(roles);
    let mut names = Names::default();
    let mut rows: Vec<Row> = Vec::new();
    for (step, Step { thread, at, what }) in (1..).zip(steps) {
        let text = names.operation(*what, &threads);
        match rows.last_mut() {
            // Somebody waits in a loop.
            Some(last) if last.thread == *thread && last.at == *at && last.text == text => {
                last.times += 1;
            }
            _ => rows.push(Row {
                step,
                thread: *thread,
                text,
                at,
                times: 1,
            }),
        }
    }
    let is_spawn = |step: &Step| matches!(step.what, What::Other("spawn", _));
    let set_up = steps.iter().position(is_spawn).unwrap_or(0);
    let skipped = match set_up {
        0..=MOST_SET_UP => 0,
        _ => set_up,
    };
    rows.retain(|row| row.step > skipped);
    let skipped = rows.len().checked_sub(MOST).map_or(skipped, |more| {
        rows.drain(..more);
        rows[0].step - 1
    });

    let mut text = String::new();
    legend(&mut text, &steps[skipped..], &mut names);
    let sheet = Sheet::for_rows(&threads, &rows);
    sheet.head(&mut text, &threads);
    match skipped {
        0 => {}
        n if n == set_up => sheet.aside(&mut text, &format!("({n} operations of set-up)")),
        n => sheet.aside(&mut text, &format!("({n} operations before)")),
    }
    for row in rows {
        let times = match row.times {
            1 => String::new(),
            n => format!(" ({n} times)"),
        };
        let at = place(row.at);
        sheet.row(
            &mut text,
            &row.step.to_string(),
            row.thread,
            &(row.text + &times),
            &at,
        );
    }
    let failure = format!("{} failed: {message}", name_of(&threads, failed));
    for line in failure.lines() {
        sheet.aside(&mut text, line);
    }
    text.truncate(text.trim_end().len());
    text
}

/// Of a library's file only what names the library and the file.
pub(super) fn place(at: &Location<'_>) -> String {
    let (_, file) = at
        .file()
        .split_once("/registry/src/")
        .unwrap_or(("", at.file()));
    format!("{file}:{}", at.line())
}

/// What stands in the rows: name, type, and where it was made.
fn legend(text: &mut String, steps: &[Step], names: &mut Names) {
    let mut told = BTreeMap::new();
    for step in steps {
        if let What::Atomic { object, .. } | What::Use(_, object) = step.what {
            told.insert(names.of(object).to_owned(), object);
        }
    }
    let mut told: Vec<_> = told.into_iter().collect();
    told.sort_by_key(|(name, _)| (name.len(), name.clone()));
    let mut used = 0;
    for (name, object) in told {
        let entry = format!("{name} {} of {};", object.kind, place(object.made));
        let gap = match used {
            0 => "",
            _ if used + entry.len() >= WIDTH => {
                used = 0;
                "\n"
            }
            _ => " ",
        };
        used += gap.len() + entry.len();
        let _ = write!(text, "{gap}{entry}");
    }
    text.push('\n');
}

/// Where the columns are. An operation may run over those to its right, which
/// are empty in its row.
struct Sheet {
    starts: Vec<usize>,
    end: usize,
}

impl Sheet {
    const FIRST: usize = 6;
    const MAIN: usize = 14;

    fn for_rows(threads: &[String], rows: &[Row]) -> Self {
        let place = rows.iter().map(|row| place(row.at).len()).max();
        let end = WIDTH - place.unwrap_or(0).min(50) - 1;
        let roles = threads.len() - 1;
        let width = (end - Self::FIRST - Self::MAIN) / roles.max(1);
        let of_role = |i| Self::FIRST + Self::MAIN + i * width;
        Self {
            starts: std::iter::once(Self::FIRST)
                .chain((0..roles).map(of_role))
                .collect(),
            end,
        }
    }

    fn head(&self, text: &mut String, threads: &[String]) {
        let mut line = String::from("step");
        for (start, name) in self.starts.iter().zip(threads) {
            let _ = write!(line, "{:1$}| {name}", "", start.saturating_sub(line.len()));
        }
        text.push_str(&line);
        text.push('\n');
    }

    fn row(&self, text: &mut String, step: &str, thread: usize, operation: &str, at: &str) {
        let start = self.starts.get(thread).map_or(Self::FIRST, |start| *start);
        let mut edge = (format!("{step:>4}"), at);
        for part in wrapped(operation, self.end - start - 3) {
            let from = start + 2;
            let end = self.end.max(from + part.len()) + 1;
            let mut line = format!("{:end$}", edge.0).into_bytes();
            for bar in &self.starts {
                line[*bar] = b'|';
            }
            // A blank on each side, so that no bar touches it.
            line[from - 1..=from + part.len()].fill(b' ');
            line[from..from + part.len()].copy_from_slice(part.as_bytes());
            text.push_str(&String::from_utf8_lossy(&line));
            text.push_str(edge.1);
            text.truncate(text.trim_end().len());
            text.push('\n');
            edge = (String::new(), "");
        }
    }

    /// What is in no thread's column.
    fn aside(&self, text: &mut String, what: &str) {
        for part in wrapped(what, WIDTH - Self::FIRST) {
            let _ = writeln!(text, "{:1$}{part}", "", Self::FIRST);
        }
    }
}

/// `text` in lines of at most `width` bytes, if its words are shorter.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one");
        if line.is_empty() {
            *line = word.to_owned();
        } else if line.len() + 1 + word.len() <= width {
            *line += " ";
            *line += word;
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use uaio_core::sync::atomic::Ordering;

    #[test]
    fn each_operation_stands_in_its_threads_column() {
        let at = Location::caller();
        let object = Object {
            number: 7,
            kind: "AtomicU64",
            made: at,
        };
        let step = |thread, what| Step { thread, at, what };
        let read = |bits| What::Atomic {
            object,
            method: "load",
            change: Change::Read(bits),
            order: Ordering::Acquire,
        };
        let steps = [
            step(0, What::Other("spawn", 1)),
            step(2, read(u64::MAX - 1)),
            step(1, What::Hint("spin_loop")),
            step(1, What::Hint("spin_loop")),
        ];
        let text = write(&steps, &["waiter", "waiter"], 1, "why");
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("a1 AtomicU64 of models/src/harness/timeline.rs:"),
            "{text}"
        );
        let column = |name: &str| lines[1].find(name).expect(name);
        assert_eq!(
            lines[2].find("spawn waiter 1"),
            Some(column("main")),
            "{text}"
        );
        assert_eq!(
            lines[3].find("a1 load MAX-1 Acquire"),
            Some(column("waiter 2")),
            "{text}"
        );
        assert_eq!(
            lines[4].find("spin_loop (2 times)"),
            Some(column("waiter 1")),
            "{text}"
        );
        assert!(lines[5].ends_with("waiter 1 failed: why"), "{text}");
        assert!(lines.iter().all(|line| line.len() <= WIDTH), "{text}");
    }
}
