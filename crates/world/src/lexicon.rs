//! Words of the world.

/// Names of women, then of men; the halves are equally long.
pub(crate) const NAMES: [&str; 40] = [
    "Mira", "Talia", "Suna", "Lotta", "Nadia", "Runa", "Elsa", "Wilma", "Petra", "Ada", "Ines", "Greta", "Hilda",
    "Olga", "Vera", "Zora", "Clara", "Dina", "Flora", "Ruth", "Oren", "Bram", "Perrin", "Kesh", "Ivo", "Dorin",
    "Tomas", "Hugo", "Felix", "Anton", "Emil", "Jonas", "Lars", "Milo", "Niko", "Otto", "Rufus", "Simon", "Victor",
    "Walter",
];

/// Town, what stands there.
pub(crate) const TOWNS: [(&str, &str); 12] = [
    ("Oldport", "lighthouse"),
    ("Greenhill", "orchard"),
    ("Stonebridge", "bridge"),
    ("Millford", "mill"),
    ("Highmoor", "castle"),
    ("Sandby", "harbour"),
    ("Thornfield", "tower"),
    ("Lakewood", "library"),
    ("Redcliff", "mine"),
    ("Farhaven", "temple"),
    ("Winterbrook", "school"),
    ("Goldmarsh", "theatre"),
];
pub(crate) const REGIONS: [&str; 4] = ["north", "south", "east", "west"];
pub(crate) const GOODS: [&str; 12] =
    ["salt", "honey", "stone", "flour", "wool", "fish", "silk", "paper", "copper", "candles", "cheese", "glass"];

/// Job, tool, place of work, what is made or done.
pub(crate) const JOBS: [(&str, &str, &str, &str); 12] = [
    ("baker", "oven", "bakery", "bakes bread"),
    ("smith", "hammer", "forge", "shapes iron"),
    ("farmer", "plough", "field", "grows wheat"),
    ("fisher", "net", "boat", "catches fish"),
    ("weaver", "loom", "workshop", "makes cloth"),
    ("teacher", "chalk", "classroom", "teaches children"),
    ("doctor", "bandage", "hospital", "heals the sick"),
    ("carpenter", "saw", "yard", "builds tables"),
    ("cook", "ladle", "kitchen", "makes soup"),
    ("potter", "wheel", "studio", "forms bowls"),
    ("painter", "brush", "gallery", "paints pictures"),
    ("gardener", "spade", "garden", "plants flowers"),
];

/// Animal, legs, food, home, cover.
pub(crate) const ANIMALS: [(&str, usize, &str, &str, &str); 16] = [
    ("horse", 4, "hay", "stable", "hair"),
    ("cow", 4, "grass", "barn", "hide"),
    ("hen", 2, "corn", "coop", "feathers"),
    ("spider", 8, "flies", "web", "bristles"),
    ("bee", 6, "nectar", "hive", "fuzz"),
    ("rabbit", 4, "carrots", "burrow", "fur"),
    ("fox", 4, "mice", "den", "fur"),
    ("owl", 2, "voles", "hollow", "feathers"),
    ("duck", 2, "weeds", "pond", "feathers"),
    ("trout", 0, "worms", "river", "scales"),
    ("snake", 0, "eggs", "pit", "scales"),
    ("ant", 6, "crumbs", "anthill", "shell"),
    ("sheep", 4, "clover", "meadow", "wool"),
    ("dog", 4, "meat", "kennel", "fur"),
    ("cat", 4, "milk", "basket", "fur"),
    ("pig", 4, "acorns", "sty", "bristles"),
];
/// Animals that people keep.
pub(crate) const PETS: [&str; 8] = ["horse", "cow", "hen", "rabbit", "duck", "dog", "cat", "pig"];

pub(crate) const COLOURS: [&str; 10] =
    ["red", "blue", "green", "yellow", "white", "black", "brown", "grey", "purple", "pink"];

/// Month and its feast; two months to a season.
pub(crate) const MONTHS: [(&str, &str); 8] = [
    ("Frost", "lantern feast"),
    ("Thaw", "water feast"),
    ("Seed", "plough feast"),
    ("Bloom", "flower feast"),
    ("Sun", "fire feast"),
    ("Harvest", "bread feast"),
    ("Leaf", "apple feast"),
    ("Mist", "story feast"),
];
pub(crate) const SEASONS: [&str; 4] = ["winter", "spring", "summer", "autumn"];
/// Day of the week and what people do on it.
pub(crate) const DAYS: [(&str, &str); 6] = [
    ("Moonday", "wash their clothes"),
    ("Fireday", "go to the market"),
    ("Waterday", "clean their houses"),
    ("Woodday", "visit their friends"),
    ("Stoneday", "mend their tools"),
    ("Starday", "rest at home"),
];

pub(crate) const OPPOSITES: [(&str, &str); 28] = [
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "young"),
    ("wet", "dry"),
    ("high", "low"),
    ("long", "short"),
    ("heavy", "light"),
    ("hard", "soft"),
    ("full", "empty"),
    ("rich", "poor"),
    ("happy", "sad"),
    ("loud", "quiet"),
    ("bright", "dark"),
    ("thick", "thin"),
    ("wide", "narrow"),
    ("near", "far"),
    ("early", "late"),
    ("clean", "dirty"),
    ("sweet", "bitter"),
    ("open", "closed"),
    ("brave", "afraid"),
    ("strong", "weak"),
    ("rough", "smooth"),
    ("sharp", "blunt"),
    ("true", "false"),
    ("deep", "shallow"),
    ("busy", "idle"),
];

/// Kind of thing, and things of that kind.
pub(crate) const KINDS: [(&str, [&str; 6]); 8] = [
    ("fruit", ["apple", "pear", "plum", "cherry", "lemon", "peach"]),
    ("tool", ["hammer", "saw", "spade", "rake", "axe", "drill"]),
    ("garment", ["hat", "coat", "shirt", "scarf", "glove", "sock"]),
    ("vessel", ["cup", "bowl", "jug", "pot", "bucket", "barrel"]),
    ("tree", ["oak", "pine", "birch", "willow", "maple", "elm"]),
    ("instrument", ["drum", "flute", "harp", "fiddle", "horn", "bell"]),
    ("vehicle", ["cart", "wagon", "sledge", "ship", "raft", "coach"]),
    ("toy", ["doll", "kite", "ball", "puppet", "marble", "top"]),
];
/// Things that can be counted and carried.
pub(crate) const COUNTED: [(&str, &str); 8] = [
    ("apple", "apples"),
    ("pear", "pears"),
    ("plum", "plums"),
    ("lemon", "lemons"),
    ("egg", "eggs"),
    ("candle", "candles"),
    ("coin", "coins"),
    ("marble", "marbles"),
];
/// Things that change hands in stories.
pub(crate) const CARRIED: [&str; 10] = ["hat", "coat", "scarf", "cup", "jug", "drum", "flute", "kite", "ball", "doll"];

pub(crate) const NUMBERS: [&str; 25] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "twenty-one",
    "twenty-two",
    "twenty-three",
    "twenty-four",
];

/// `a` or `an` before a word.
pub(crate) fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// The word with its article.
pub(crate) fn a(word: &str) -> String {
    format!("{} {word}", article(word))
}

/// The text with a capital first letter.
pub(crate) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
