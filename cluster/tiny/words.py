"""Closed word lists for the problems of the embedded model.

Every word is a single o200k token, both alone and after a space, so that copying one between prose
(" Paris") and JSON ("Paris") is one token for one token. No torch.
"""

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Cities.
CITIES: Final = _words("""
    Rome Paris London Berlin Madrid Tokyo Delhi Mumbai Sydney Toronto Chicago Boston Seattle
    Denver Dallas Houston Austin Miami Atlanta Phoenix Detroit Amsterdam Barcelona Dubai
    Singapore Manchester Liverpool Oxford Philadelphia Shanghai
""")
# First names.
NAMES: Final = _words("""
    Anna Ben Carl David Emma Eric Eva Frank George Helen Henry Ivan Jack James Jane John Julia
    Karen Kate Laura Leo Linda Lucy Maria Mark Mary Max Michael Mike Oscar Paul Peter Rachel
    Robert Sam Sara Sarah Simon Steve Susan Thomas Tim Tom Victor Alice Adam Alan Alex Amy
    Andrew Anne Bill Bob Brian Chris Daniel Ella Emily Grace Ian Jacob Jim Joe Kevin Kim Lisa
    Luke Martin Matt Nick Oliver Philip Ray Roger Ryan Scott Tony
""")
# Countries.
COUNTRIES: Final = _words("""
    France Germany Spain Italy Japan China India Brazil Canada Mexico Egypt Chile Turkey Russia
    Nigeria Australia Portugal Ireland Iran Israel Argentina Thailand Vietnam England
""")
# Languages.
LANGUAGES: Final = _words("""
    French German Spanish Italian Japanese Chinese Russian Greek Latin Dutch Arabic
""")
# Monday first.
WEEKDAYS: Final = _words("""
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""")
COLOURS: Final = _words("""
    red blue green yellow black white pink brown grey orange purple silver gold
""")
FRUITS: Final = _words("""
    apple pear orange banana lime melon berry fig olive
""")
ANIMALS: Final = _words("""
    cat dog horse cow bird fish pig duck lion bear wolf fox rabbit mouse snake frog bee ant
    dragon
""")
FOODS: Final = _words("""
    bread rice cake milk tea coffee salt egg pizza juice water wine fish corn cream
""")
# Things one can hold, own or see.
OBJECTS: Final = _words("""
    book pen chair table lamp phone box bag cup knife door window key clock hat shoe coat shirt
    ring ball car bike boat plane train bus truck camera mirror bed desk card coin map rope
    stone brick bell basket glass plate watch
""")
# Things to count, in the plural.
ITEMS: Final = _words("""
    berries nuts beans cookies cakes books pens chairs tables phones boxes bags cups keys
    shirts rings balls cars boats cards coins maps stones bells plates
""")
# What the weather may be.
SKIES: Final = _words("""
    clear dry wet grey cold hot warm cool humid
""")
# What a function may be about: find_train.
NOUNS: Final = _words("""
    train flight hotel room ticket table car order task note event meeting message email user
    account product item price file image song movie book recipe game team player student
    course lesson map route trip bus payment invoice report record store shop parcel package
    alarm timer contact house street park photo video page post comment letter job project plan
    list device sensor server door light window bank garden library office machine battery
    member group customer
""")
# What a function may do: find_train.
VERBS: Final = _words("""
    find get add create delete remove update send book open close start stop show search set
    check list make save load move count buy sell order cancel read write print copy share play
    call pay fetch lock turn track build clean change
""")
# Names of parameters, by type.
STRING_PARAMETERS: Final = _words("""
    city name color title subject author topic user item product country label tag team group
    owner category brand kind animal fruit food guest customer place location sender host
    driver
""")
INTEGER_PARAMETERS: Final = _words("""
    day age count number quantity amount year month week hour minute page limit level floor
    gate seat room score id hours days people copies items points platform total code
""")
NUMBER_PARAMETERS: Final = _words("""
    price weight height width length speed distance temperature rating volume duration depth
    rate cost
""")
BOOLEAN_PARAMETERS: Final = _words("""
    urgent public private active open new free fast confirmed paid secret visible enabled
    silent hidden locked fresh hot cold
""")
# Common lower-case words, to copy, count and sort.
COMMON: Final = _words("""
    able about above accept act action active actual add address advance after again age agree
    ahead air all allow almost alone along already also always among amount and animal another
    answer any appear apply area arm around art article ask attack attempt author average avoid
    aware away baby back bad bag balance ball band bank bar base basic bath bed before begin
    behind below best better between big bill birth bit black block blood blue board body book
    border born both bottom box boy brain branch break brief bright bring build burn bus button
    buy call camera camp can capital car card care career carry case cash cast cat catch cause
    cell center central certain chain chance change channel charge chart cheap check child
    choice choose church city claim class clean clear click close cloth cloud club coach code
    coffee cold collect college color column come common company compare complete computer
    concept condition contact contain content context control cook cool copy corner correct
    cost count country course court cover craft create credit cross culture cup current custom
    cut daily damage danger dark data date daughter day dead deal death deep degree delay
    deliver depend depth design detail develop device die diet direct discover distance doctor
    dog door double down draw dream dress drink drive drop dry due each early earn earth easy
    eat edge edit effect eight either elect element else empty end energy engine enter equal
    error even event ever every exact example except exchange exist exit expand expect expert
    express extra eye face fact fail fair faith fall false family far farm fashion fast fat
    father favor fear feature feed feel female few field fight figure file fill film final find
    fine finish fire firm first fish fit five fix flag flash flat flight float floor flow fly
    focus follow food foot force foreign forget form forward found four frame free fresh friend
    front fruit fuel full fun function fund future gain game garden gas general get gift girl
    give glass global goal gold good grade grand graph great green ground group grow guard
    guess guest guide habit hair half hand handle hang happy hard harm hat head health hear
    heart heat heavy height help hidden high history hit hold holiday home hope hospital host
    hot hotel hour house human ice idea ideal image impact include income index industry inform
    inside instead issue item job join joint jump just keep key kid kind king know labor lack
    land language large last late law layer lead learn least leave left leg legal length less
    letter level library lie life light like limit line list listen little live load loan local
    lock long look loop lose loss lost lot love low luck machine mad mail main major make male
    manage many map march mark market master match matter maybe mean measure media medical meet
    member memory mental mention menu message metal method middle might mind mine minor minute
    miss mix model modern moment money month more mother motor mouse move movie much mud music
    must name nation native nature near need neighbor net never new news next nice night none
    normal note nothing notice now number object offer office often oil old once one only open
    option order organ origin other outside over owner pack page pain paint pair panel paper
    parent park part party pass past path patient pattern pay peace pen people perfect period
    person phone photo pick picture piece pin place plan plant plate play please plot point
    policy pool poor port position post pot pour power prefer present press pretty price print
    private problem process produce program proper protect provide public pull pure purpose
    push put question quick quiet quite race radio rain raise random range rank rapid rare rate
    raw reach read ready real reason receive recipe record reduce refer region regular remain
    remove rent repair report respect rest result return review rich ride right ring risk road
    rock role roll room root round route row rule run sad safe same sample sand save scale
    scene school science score screen sea search season seat second secret section secure see
    seek select self sell send sense series serve session set seven shape share shift ship
    shoot shop short shot show side sign signal similar simple since sing single site six size
    skin sleep slow small smart smooth snow social soft solid some song soon sort sound source
    south space special speed split sport spot spread spring square staff stage stand star
    start state station stay steel step stick still stock stone stop store story stream street
    stress string strong student study stuff style subject such summer sun support sure surface
    sweet switch symbol system table tail take talk target task taste tax teach team tell ten
    tent term test text thank theme thing think third thought thread three through throw time
    tip title today toe tool top topic total touch tour town track trade train travel tree
    trial trip truck true trust truth try turn two type under unique unit until upper use value
    van vast version very view visit visual voice volume vote wait walk wall want war warm
    watch water way weak wear weather web week weight welcome west wet what when where while
    white whole why wide wife wild will win wind window wine winter wire wish woman wonder wood
    word work world worth write wrong year yes young zero zone
""")
# Things of every kind, for lists.
LIST_WORDS: Final = tuple(dict.fromkeys(FRUITS + ANIMALS + COLOURS + FOODS + OBJECTS))
