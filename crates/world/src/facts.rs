//! Facts of the world, each with ways to say it and ways to ask for it.

use crate::lexicon::{
    ANIMALS, COLOURS, DAYS, GOODS, JOBS, KINDS, MONTHS, NAMES, NUMBERS, OPPOSITES, PETS, REGIONS, SEASONS, TOWNS, a,
};
use crate::random::Source;

/// One fact. Statements begin in lower case unless with a name, and have no full stop.
pub struct Fact {
    /// Subject of its questions, in MMLU's file-name form.
    pub subject: &'static str,
    /// Ways to say it.
    pub statements: Vec<String>,
    /// Ways to ask for it.
    pub stems: Vec<String>,
    /// The answer.
    pub answer: String,
    /// Wrong answers of the same kind.
    pub others: Vec<String>,
}

/// Someone in the world.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    pub name: &'static str,
    pub woman: bool,
    pub town: &'static str,
    /// Index into [`JOBS`].
    pub job: usize,
    pub pet: &'static str,
    pub colour: &'static str,
    pub month: &'static str,
}

impl Person {
    /// He or she.
    pub fn they(&self) -> &'static str {
        if self.woman { "she" } else { "he" }
    }

    /// His or her.
    pub fn their(&self) -> &'static str {
        if self.woman { "her" } else { "his" }
    }

    /// Him or her.
    pub fn them(&self) -> &'static str {
        if self.woman { "her" } else { "him" }
    }
}

/// A world: who lives where, and everything that follows from its seed.
pub struct World {
    pub(crate) seed: u64,
    pub(crate) people: Vec<Person>,
    pub(crate) facts: Vec<Fact>,
}

impl World {
    /// The world of a seed. A later `year` is the same world after some people moved and changed
    /// their work.
    pub fn new(seed: u64, year: u64) -> Self {
        let mut source = Source::new(seed);
        let mut people: Vec<Person> = NAMES
            .iter()
            .enumerate()
            .map(|(i, &name)| Person {
                name,
                woman: i < NAMES.len() / 2,
                town: source.pick(&TOWNS).0,
                job: source.below(JOBS.len()),
                pet: source.pick(&PETS),
                colour: source.pick(&COLOURS),
                month: source.pick(&MONTHS).0,
            })
            .collect();
        let places = places(&mut source);
        for _ in 0..year {
            for person in &mut people {
                if source.below(4) == 0 {
                    person.town = source.pick(&TOWNS).0;
                }
                if source.below(4) == 0 {
                    person.job = source.below(JOBS.len());
                }
            }
        }
        let mut facts = places;
        facts.extend(people.iter().flat_map(person));
        facts.extend(jobs());
        facts.extend(animals());
        facts.extend(arithmetic());
        facts.extend(calendar());
        facts.extend(opposites());
        facts.extend(things());
        Self { seed, people, facts }
    }

    /// All facts of the world.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }
}

/// A fact whose wrong answers are the rest of `pool`.
fn fact<const S: usize, const Q: usize>(
    subject: &'static str,
    answer: &str,
    pool: impl IntoIterator<Item = String>,
    statements: [String; S],
    stems: [String; Q],
) -> Fact {
    let mut others: Vec<String> = pool.into_iter().filter(|o| o != answer).collect();
    others.sort();
    others.dedup();
    Fact { subject, statements: statements.into(), stems: stems.into(), answer: answer.into(), others }
}

fn owned<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    words.into_iter().map(String::from).collect()
}

fn person(p: &Person) -> Vec<Fact> {
    let (name, town, colour, month) = (p.name, p.town, p.colour, p.month);
    let (job, _, place, does) = JOBS[p.job];
    let (pet, job_a) = (a(p.pet), a(job));
    vec![
        fact(
            "people",
            town,
            owned(TOWNS.map(|t| t.0)),
            [
                format!("{name} lives in {town}"),
                format!("the home of {name} is in {town}"),
                format!("{name} has a house in {town}"),
                format!("{town} is the town where {name} lives"),
            ],
            [
                format!("Where does {name} live?"),
                format!("In which town does {name} live?"),
                format!("Where is the home of {name}?"),
                format!("Which town is the home of {name}?"),
                format!("In which town does {name} have a house?"),
            ],
        ),
        fact(
            "people",
            job,
            owned(JOBS.map(|j| j.0)),
            [
                format!("{name} is {job_a}"),
                format!("{name} works as {job_a}"),
                format!("{name} is {job_a} and {does}"),
                format!("you can find {name} the {job} in the {place}"),
            ],
            [
                format!("What is the job of {name}?"),
                format!("What is the work of {name}?"),
                format!("Which job does {name} have?"),
                format!("What does {name} work as?"),
                format!("What is {name} by trade?"),
            ],
        ),
        fact(
            "people",
            p.pet,
            owned(PETS),
            [
                format!("{name} keeps {pet}"),
                format!("{name} has {pet} at home"),
                format!("the pet of {name} is {pet}"),
                format!("{name} feeds {pet} every morning"),
            ],
            [
                format!("Which animal does {name} keep?"),
                format!("What is the pet of {name}?"),
                format!("Which animal does {name} have at home?"),
                format!("Which animal does {name} feed every morning?"),
                format!("What pet does {name} have?"),
            ],
        ),
        fact(
            "people",
            colour,
            owned(COLOURS),
            [
                format!("{name} likes the colour {colour} best"),
                format!("{colour} is the colour that {name} likes best"),
                format!("{name} wears {colour} clothes"),
                format!("the house of {name} has {} door", a(colour)),
            ],
            [
                format!("Which colour does {name} like best?"),
                format!("What is the best colour for {name}?"),
                format!("Which colour are the clothes of {name}?"),
                format!("Which colour is the door of {name}?"),
                format!("What colour does {name} wear?"),
            ],
        ),
        fact(
            "people",
            month,
            owned(MONTHS.map(|m| m.0)),
            [
                format!("{name} was born in {month}"),
                format!("the birthday of {name} is in {month}"),
                format!("{name} has a birthday in the month of {month}"),
                format!("{month} is the month when {name} was born"),
            ],
            [
                format!("In which month was {name} born?"),
                format!("When is the birthday of {name}?"),
                format!("In which month is the birthday of {name}?"),
                format!("When was {name} born?"),
                format!("Which month is the birth month of {name}?"),
            ],
        ),
    ]
}

fn places(source: &mut Source) -> Vec<Fact> {
    let goods = source.several(&GOODS, TOWNS.len());
    let mut facts = Vec::new();
    for ((town, building), goods) in TOWNS.into_iter().zip(goods) {
        let region = source.pick(&REGIONS);
        facts.push(fact(
            "places",
            region,
            owned(REGIONS),
            [
                format!("{town} is in the {region}"),
                format!("the town of {town} lies in the {region} of the land"),
                format!("to reach {town} you must go {region}"),
                format!("{town} is a town in the {region}"),
            ],
            [
                format!("In which part of the land is {town}?"),
                format!("Where in the land does {town} lie?"),
                format!("Which way must you go to reach {town}?"),
                format!("In which part of the land does {town} lie?"),
                format!("Which part of the land has the town of {town}?"),
            ],
        ));
        facts.push(fact(
            "places",
            goods,
            owned(GOODS),
            [
                format!("{town} sells {goods}"),
                format!("the people of {town} make and sell {goods}"),
                format!("{town} is known for its {goods}"),
                format!("the best {goods} comes from {town}"),
            ],
            [
                format!("What does {town} sell?"),
                format!("What is {town} known for?"),
                format!("What do the people of {town} make and sell?"),
                format!("What is best from {town}?"),
                format!("What can you buy from the people of {town}?"),
            ],
        ));
        facts.push(fact(
            "places",
            building,
            owned(TOWNS.map(|t| t.1)),
            [
                format!("there is a {building} in {town}"),
                format!("{town} has an old {building}"),
                format!("travellers come to {town} to see the {building}"),
                format!("the {building} of {town} is beautiful"),
            ],
            [
                format!("What stands in {town}?"),
                format!("What do travellers see in {town}?"),
                format!("What is old in {town}?"),
                format!("What can you visit in {town}?"),
                format!("Which building does {town} have?"),
            ],
        ));
        facts.push(fact(
            "places",
            town,
            owned(TOWNS.map(|t| t.0)),
            [
                format!("the {building} stands in {town}"),
                format!("if you look for the {building}, go to {town}"),
                format!("{goods} comes from {town}"),
                format!("the town that sells {goods} is {town}"),
            ],
            [
                format!("Which town has the {building}?"),
                format!("Where does the {building} stand?"),
                format!("Where does {goods} come from?"),
                format!("Which town sells {goods}?"),
                format!("In which town is the {building}?"),
            ],
        ));
    }
    facts
}

fn jobs() -> Vec<Fact> {
    let mut facts = Vec::new();
    for (job, tool, place, does) in JOBS {
        facts.push(fact(
            "jobs",
            tool,
            owned(JOBS.map(|j| j.1)),
            [
                format!("a {job} works with a {tool}"),
                format!("every {job} needs a {tool}"),
                format!("the {tool} belongs to the {job}"),
                format!("a good {job} takes care of the {tool}"),
            ],
            [
                format!("What does a {job} work with?"),
                format!("What does every {job} need?"),
                format!("What is the tool of a {job}?"),
                format!("Which tool does a {job} use?"),
                format!("What does a good {job} take care of?"),
            ],
        ));
        facts.push(fact(
            "jobs",
            place,
            owned(JOBS.map(|j| j.2)),
            [
                format!("a {job} works in a {place}"),
                format!("the {job} spends the day in the {place}"),
                format!("in the {place} you meet the {job}"),
                format!("the place of a {job} is the {place}"),
            ],
            [
                format!("Where does a {job} work?"),
                format!("Where does the {job} spend the day?"),
                format!("Where can you meet a {job}?"),
                format!("What is the place of a {job}?"),
                format!("In which place does a {job} work?"),
            ],
        ));
        facts.push(fact(
            "jobs",
            job,
            owned(JOBS.map(|j| j.0)),
            [
                format!("the one who {does} is the {job}"),
                format!("a {job} {does}"),
                format!("whoever {does} is a {job}"),
                format!("the {tool} is the tool of the {job}"),
            ],
            [
                format!("Who {does}?"),
                format!("Which worker {does}?"),
                format!("Who works with a {tool}?"),
                format!("Who works in a {place}?"),
                format!("What do you call someone who {does}?"),
            ],
        ));
    }
    facts
}

fn animals() -> Vec<Fact> {
    let mut facts = Vec::new();
    for (animal, legs, food, home, cover) in ANIMALS {
        let (one, legs) = (a(animal), if legs == 0 { "no" } else { NUMBERS[legs] });
        facts.push(fact(
            "animals",
            legs,
            owned(["no", "two", "four", "six", "eight"]),
            [
                format!("{one} has {legs} legs"),
                format!("{one} is an animal with {legs} legs"),
                format!("the {animal} has {legs} legs"),
                format!("you can count {legs} legs on {one}"),
            ],
            [
                format!("How many legs does {one} have?"),
                format!("How many legs has the {animal}?"),
                format!("What is the number of legs of {one}?"),
                format!("How many legs can you count on {one}?"),
                format!("How many legs do you see on {one}?"),
            ],
        ));
        facts.push(fact(
            "animals",
            food,
            owned(ANIMALS.map(|x| x.2)),
            [
                format!("{one} eats {food}"),
                format!("the {animal} likes to eat {food}"),
                format!("{food} is what {one} eats"),
                format!("if you have {one}, give it {food}"),
            ],
            [
                format!("What does {one} eat?"),
                format!("What does the {animal} like to eat?"),
                format!("What is the food of {one}?"),
                format!("What should you give to {one}?"),
                format!("Which food does {one} like?"),
            ],
        ));
        facts.push(fact(
            "animals",
            home,
            owned(ANIMALS.map(|x| x.3)),
            [
                format!("{one} lives in a {home}"),
                format!("the home of {one} is a {home}"),
                format!("at night the {animal} sleeps in its {home}"),
                format!("a {home} is where {one} lives"),
            ],
            [
                format!("Where does {one} live?"),
                format!("What is the home of {one}?"),
                format!("Where does the {animal} sleep at night?"),
                format!("In what does {one} live?"),
                format!("Where can you find {one} at night?"),
            ],
        ));
        facts.push(fact(
            "animals",
            cover,
            owned(ANIMALS.map(|x| x.4)),
            [
                format!("{one} is covered with {cover}"),
                format!("the {animal} has {cover} on its body"),
                format!("{cover} keeps the {animal} warm"),
                format!("the body of {one} has {cover}"),
            ],
            [
                format!("What covers {one}?"),
                format!("What is {one} covered with?"),
                format!("What does the {animal} have on its body?"),
                format!("What keeps the {animal} warm?"),
                format!("What covers the body of {one}?"),
            ],
        ));
    }
    facts
}

fn arithmetic() -> Vec<Fact> {
    let mut facts = Vec::new();
    for x in 1..=12 {
        for y in 1..=12 {
            let (sum, n, m) = (NUMBERS[x + y], NUMBERS[x], NUMBERS[y]);
            let near = (1..=24usize).filter(|z| z.abs_diff(x + y) <= 5).map(|z| NUMBERS[z].to_string());
            facts.push(fact(
                "arithmetic",
                sum,
                near,
                [
                    format!("{n} plus {m} is {sum}"),
                    format!("{n} and {m} make {sum}"),
                    format!("if you add {m} to {n}, you get {sum}"),
                    format!("the sum of {n} and {m} is {sum}"),
                ],
                [
                    format!("What is {n} plus {m}?"),
                    format!("How much do {n} and {m} make?"),
                    format!("What do you get if you add {m} to {n}?"),
                    format!("What is the sum of {n} and {m}?"),
                    format!("How much is {n} plus {m}?"),
                ],
            ));
            if y >= x {
                continue;
            }
            let rest = NUMBERS[x - y];
            let near = (0..=14usize).filter(|z| z.abs_diff(x - y) <= 5).map(|z| NUMBERS[z].to_string());
            facts.push(fact(
                "arithmetic",
                rest,
                near,
                [
                    format!("{n} minus {m} is {rest}"),
                    format!("if you take {m} from {n}, {rest} is left"),
                    format!("{n} less {m} is {rest}"),
                    format!("the difference of {n} and {m} is {rest}"),
                ],
                [
                    format!("What is {n} minus {m}?"),
                    format!("What is left if you take {m} from {n}?"),
                    format!("What is {n} less {m}?"),
                    format!("What is the difference of {n} and {m}?"),
                    format!("How much is {n} minus {m}?"),
                ],
            ));
        }
    }
    facts
}

fn calendar() -> Vec<Fact> {
    let mut facts = Vec::new();
    let months = || owned(MONTHS.map(|m| m.0));
    for (i, (month, feast)) in MONTHS.into_iter().enumerate() {
        let (next, season) = (MONTHS[(i + 1) % MONTHS.len()].0, SEASONS[i / 2]);
        facts.push(fact(
            "calendar",
            next,
            months(),
            [
                format!("after {month} comes {next}"),
                format!("the month after {month} is {next}"),
                format!("{next} follows {month}"),
                format!("when {month} ends, {next} begins"),
            ],
            [
                format!("Which month comes after {month}?"),
                format!("Which month follows {month}?"),
                format!("What is the month after {month}?"),
                format!("Which month begins when {month} ends?"),
                format!("What comes after {month}?"),
            ],
        ));
        facts.push(fact(
            "calendar",
            month,
            months(),
            [
                format!("before {next} comes {month}"),
                format!("the month before {next} is {month}"),
                format!("the {feast} is in {month}"),
                format!("people hold the {feast} in {month}"),
            ],
            [
                format!("Which month comes before {next}?"),
                format!("What is the month before {next}?"),
                format!("In which month is the {feast}?"),
                format!("When do people hold the {feast}?"),
                format!("Which month has the {feast}?"),
            ],
        ));
        facts.push(fact(
            "calendar",
            season,
            owned(SEASONS),
            [
                format!("{month} is a month of {season}"),
                format!("{month} is in {season}"),
                format!("in {month} it is {season}"),
                format!("the month of {month} belongs to {season}"),
            ],
            [
                format!("In which season is {month}?"),
                format!("Which season is it in {month}?"),
                format!("To which season does {month} belong?"),
                format!("What is the season of {month}?"),
                format!("Which season has the month of {month}?"),
            ],
        ));
        facts.push(fact(
            "calendar",
            feast,
            owned(MONTHS.map(|m| m.1)),
            [
                format!("in {month} people hold the {feast}"),
                format!("{month} is the month of the {feast}"),
                format!("the feast of {month} is the {feast}"),
                format!("everyone waits for the {feast} in {month}"),
            ],
            [
                format!("Which feast is in {month}?"),
                format!("What do people hold in {month}?"),
                format!("What is the feast of {month}?"),
                format!("Which feast belongs to {month}?"),
                format!("What does everyone wait for in {month}?"),
            ],
        ));
    }
    for (i, (day, custom)) in DAYS.into_iter().enumerate() {
        let next = DAYS[(i + 1) % DAYS.len()].0;
        facts.push(fact(
            "calendar",
            next,
            owned(DAYS.map(|d| d.0)),
            [
                format!("after {day} comes {next}"),
                format!("the day after {day} is {next}"),
                format!("{next} follows {day}"),
                format!("if today is {day}, tomorrow is {next}"),
            ],
            [
                format!("Which day comes after {day}?"),
                format!("Which day follows {day}?"),
                format!("What is the day after {day}?"),
                format!("If today is {day}, what is tomorrow?"),
                format!("What is tomorrow if today is {day}?"),
            ],
        ));
        facts.push(fact(
            "calendar",
            day,
            owned(DAYS.map(|d| d.0)),
            [
                format!("the day before {next} is {day}"),
                format!("on {day} people {custom}"),
                format!("{day} is the day when people {custom}"),
                format!("if today is {next}, yesterday was {day}"),
            ],
            [
                format!("Which day comes before {next}?"),
                format!("What is the day before {next}?"),
                format!("On which day do people {custom}?"),
                format!("If today is {next}, what was yesterday?"),
                format!("When do people {custom}?"),
            ],
        ));
    }
    facts
}

fn opposites() -> Vec<Fact> {
    let words = || owned(OPPOSITES.iter().flat_map(|&(x, y)| [x, y]));
    let both = OPPOSITES.iter().flat_map(|&(x, y)| [(x, y), (y, x)]);
    both.map(|(x, y)| {
        fact(
            "opposites",
            y,
            words(),
            [
                format!("the opposite of {x} is {y}"),
                format!("{x} is the opposite of {y}"),
                format!("what is not {x} is {y}"),
                format!("{x} and {y} are opposites"),
            ],
            [
                format!("What is the opposite of {x}?"),
                format!("Which word is the opposite of {x}?"),
                format!("What do you call something that is not {x}?"),
                format!("Which word means not {x}?"),
                format!("What is not {x}?"),
            ],
        )
    })
    .collect()
}

fn things() -> Vec<Fact> {
    let mut facts = Vec::new();
    for (kind, members) in KINDS {
        for member in members {
            let (one, a_kind) = (a(member), a(kind));
            facts.push(fact(
                "things",
                kind,
                owned(KINDS.map(|k| k.0)),
                [
                    format!("{one} is {a_kind}"),
                    format!("the {member} is a kind of {kind}"),
                    format!("people call {one} {a_kind}"),
                    format!("every {member} is {a_kind}"),
                ],
                [
                    format!("What is {one}?"),
                    format!("What kind of thing is {one}?"),
                    format!("What do people call {one}?"),
                    format!("Which kind of thing is the {member}?"),
                    format!("To which kind does {one} belong?"),
                ],
            ));
            let strangers = KINDS.iter().filter(|k| k.0 != kind).flat_map(|k| k.1);
            facts.push(fact(
                "things",
                member,
                owned(strangers),
                [
                    format!("one kind of {kind} is the {member}"),
                    format!("{a_kind} that people know well is the {member}"),
                    format!("when you need {a_kind}, take {one}"),
                    format!("among the things called {kind} is the {member}"),
                ],
                [
                    format!("Which of these is {a_kind}?"),
                    format!("Which one is a kind of {kind}?"),
                    format!("Which of these would people call {a_kind}?"),
                    format!("What can you take when you need {a_kind}?"),
                    format!("Which thing is {a_kind}?"),
                ],
            ));
        }
    }
    facts
}
