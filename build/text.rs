//! The help texts, read: usage, paragraphs, options, and what stands as it is.

/// A part of a help text.
#[derive(Debug)]
pub(crate) enum Block {
    /// `Usage: ...`, a line for each form.
    Usage(Vec<String>),
    /// Lines that flow.
    Paragraph(String),
    /// Options in a row.
    Options(Vec<Opt>),
    /// Indented lines.
    Verbatim(Vec<String>),
}

/// An option as the help texts have it.
#[derive(Clone, Debug)]
pub(crate) struct Opt {
    pub(crate) short: Option<char>,
    /// Without the dashes.
    pub(crate) name: String,
    /// What the value is called.
    pub(crate) value: Option<String>,
    pub(crate) text: String,
}

/// What can be completed for an option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// It has none.
    No,
    /// One of these words.
    Words(Vec<String>),
    /// A file.
    File,
    /// An interface of the host.
    Interface,
    /// What nobody can guess.
    Other,
}

impl Opt {
    pub(crate) fn kind(&self) -> Value {
        match self.value.as_deref() {
            None => Value::No,
            Some("FILE" | "PATH") => Value::File,
            Some("A") => Value::Interface,
            Some("LEVEL") => Value::Words(
                self.text
                    .split([',', ' '])
                    .filter(|word| !["", "or"].contains(word))
                    .map(str::to_owned)
                    .collect(),
            ),
            Some(_) => Value::Other,
        }
    }

    /// The first clause of the text.
    pub(crate) fn brief(&self) -> &str {
        self.text.split([';', ':', '(']).next().unwrap_or_default().trim_end()
    }

    /// Reads a line such as `  -p, --publish SPEC   text`.
    fn read(line: &str) -> Option<Self> {
        let line = line.trim_start();
        let (short, rest) = match line.strip_prefix('-')?.split_once(", ") {
            Some((short, rest)) if short.chars().count() == 1 => (short.chars().next(), rest),
            _ => (None, line),
        };
        let rest = rest.strip_prefix("--")?;
        let (head, text) = rest.split_once("  ").unwrap_or((rest, ""));
        let (name, value) = match head.split_once([' ', '=']) {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (head, None),
        };
        Some(Self { short, name: name.to_owned(), value, text: text.trim().to_owned() })
    }
}

/// Takes a help text apart.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    // An empty line ends a block, but for one of options.
    let mut open = false;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let (words, was_open) = (line.trim(), open);
        open = !words.is_empty();
        if !open {
            continue;
        }
        if let Some(usage) = line.strip_prefix("Usage: ") {
            blocks.push(Block::Usage(vec![usage.to_owned()]));
            continue;
        }
        if let Some(option) = Opt::read(line) {
            match blocks.last_mut() {
                Some(Block::Options(options)) => options.push(option),
                _ => blocks.push(Block::Options(vec![option])),
            }
            continue;
        }
        match blocks.last_mut() {
            Some(Block::Usage(lines)) if was_open && indent > 0 => lines.push(words.to_owned()),
            Some(Block::Options(options)) if was_open && indent > 20 => {
                if let Some(option) = options.last_mut() {
                    option.text = format!("{} {words}", option.text).trim().to_owned();
                }
            }
            Some(Block::Paragraph(text)) if was_open && indent == 0 => {
                text.push(' ');
                text.push_str(words);
            }
            Some(Block::Verbatim(lines)) if was_open && indent > 0 => {
                lines.push(line.trim_end().to_owned());
            }
            _ if indent == 0 => blocks.push(Block::Paragraph(words.to_owned())),
            _ => blocks.push(Block::Verbatim(vec![line.trim_end().to_owned()])),
        }
    }
    blocks
}

/// The options of a help text.
pub(crate) fn options(text: &str) -> Vec<Opt> {
    blocks(text)
        .into_iter()
        .filter_map(|block| match block {
            Block::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .collect()
}

/// The commands that the program's own help text lists under `Commands:`, each with what it does.
pub(crate) fn commands(program: &str) -> Vec<(String, String)> {
    program
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.trim().split_once("  "))
        .map(|(name, text)| (name.to_owned(), text.trim().to_owned()))
        .collect()
}
