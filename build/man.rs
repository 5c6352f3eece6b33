//! ringtap(1), in the language of man(7).

use crate::help;
use crate::text::{Block, Opt, blocks};

/// The page.
pub(crate) fn page(version: &str, pages: &[(&str, String)]) -> String {
    let mut out = Page(String::new());
    // No date: every build would make another page. The version tells as much.
    out.line(&format!(".TH RINGTAP 1 \"\" \"ringtap {version}\" \"User Commands\""));
    let program = blocks(help::PROGRAM);
    let mut parts = program.iter();
    out.section("NAME");
    if let Some(Block::Paragraph(line)) = parts.next() {
        out.text(&line.replacen(": ", " - ", 1));
    }
    for block in parts {
        match block {
            Block::Usage(lines) => {
                out.section("SYNOPSIS");
                out.usage(lines);
                out.section("DESCRIPTION");
            }
            other => out.block(other),
        }
    }
    out.section("COMMANDS");
    for (name, _) in pages {
        out.line(&format!(".SS \"ringtap {name}\""));
        let (about, example) = help::own(name);
        for text in [about, example] {
            blocks(text).iter().for_each(|block| out.block(block));
        }
    }
    out.section("OPTIONS OF ATTACH AND CREATE");
    blocks(help::LIFETIME).iter().for_each(|block| out.block(block));
    out.section("OPTIONS OF RUN, ATTACH AND CREATE");
    blocks(help::COMMON).iter().for_each(|block| out.block(block));
    out.section("SLIRP4NETNS");
    out.paragraph(
        "Started under the name slirp4netns, the program takes this command line instead:",
    );
    blocks(&help::slirp4netns("slirp4netns")).iter().for_each(|block| out.block(block));
    out.section("EXIT STATUS");
    for (code, meaning) in [
        ("0", "Ended as it should: by a signal, by --exit-fd, or with the guest."),
        ("1", "Something failed; one line on standard error says what, and what helps."),
        ("2", "The command line cannot be carried out as it is. Nothing was done."),
        ("other", "That of the COMMAND of run; 128 and the signal's number if one ended it."),
    ] {
        out.tagged(&format!("\\fB{code}\\fR"), meaning);
    }
    out.section("SEE ALSO");
    out.line(".BR slirp4netns (1),");
    out.line(".BR network_namespaces (7),");
    out.line(".BR user_namespaces (7),");
    out.line(".BR io_uring (7)");
    out.0
}

struct Page(String);

impl Page {
    /// A line in the language.
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn section(&mut self, name: &str) {
        self.line(&format!(".SH \"{name}\""));
    }

    fn text(&mut self, text: &str) {
        let text = escaped(text);
        self.line(&text);
    }

    /// Begins a paragraph; a heading has done so.
    fn begin(&mut self) {
        let last = self.0.lines().last().unwrap_or_default();
        if !last.starts_with(".SH") && !last.starts_with(".SS") {
            self.line(".PP");
        }
    }

    fn paragraph(&mut self, text: &str) {
        self.begin();
        self.text(text);
    }

    fn tagged(&mut self, tag: &str, text: &str) {
        self.line(".TP");
        self.line(tag);
        self.text(text);
    }

    fn usage(&mut self, lines: &[String]) {
        self.line(".nf");
        lines.iter().for_each(|line| self.text(line));
        self.line(".fi");
    }

    fn block(&mut self, block: &Block) {
        match block {
            Block::Usage(lines) => {
                self.begin();
                self.usage(lines);
            }
            Block::Paragraph(text) => self.paragraph(text),
            Block::Options(options) => {
                options.iter().for_each(|option| self.tagged(&tag(option), &option.text));
            }
            Block::Verbatim(lines) => {
                self.begin();
                self.line(".RS 2");
                self.usage(lines);
                self.line(".RE");
            }
        }
    }
}

/// `-p, --publish SPEC`
fn tag(option: &Opt) -> String {
    let short = option.short.map(|c| format!("\\fB\\-{c}\\fR, ")).unwrap_or_default();
    let value = option.value.as_deref().map(|v| format!(" \\fI{}\\fR", escaped(v)));
    let name = escaped(&option.name);
    format!("{short}\\fB\\-\\-{name}\\fR{}", value.unwrap_or_default())
}

/// Text that means itself: roff(7) has ideas about backslashes, hyphens, and what a line begins with.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "\\(ga");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
