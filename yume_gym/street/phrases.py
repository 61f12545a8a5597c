"""The words of events: for each kind the phrasings a model is trained on, others kept for tests, and its keywords.

Pure data, read by `yume_gym.street.events`. `held_out` phrasings share no wording with the training ones on purpose:
they ask whether a model understands an event rather than remembers its text. `keywords` are whole words, or several in
sequence, for matching free text; a trailing ``*`` stands for any ending.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EventKind:
    """One kind of event: its id, its training phrasings, its held-out phrasings, and the keywords that betray it."""

    name: str
    phrases: tuple[str, ...]
    held_out: tuple[str, ...]
    keywords: tuple[str, ...]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _words(text: str) -> tuple[str, ...]:
    return tuple(" ".join(word.split()) for word in text.split(","))


# Things with a place come before weather and light: of equally good matches the first one wins.
EVENT_KINDS: tuple[EventKind, ...] = (
    EventKind(
        "fireworks",
        _lines("""
            fireworks explode in the sky
            colourful fireworks burst above the rooftops
            a fireworks show begins
            someone sets off fireworks over the city
            fireworks light up the street
            bright fireworks crackle high overhead
            a big fireworks display starts over the houses
            red and green fireworks bloom in the air
            New Year's fireworks go off
            a salvo of fireworks rises and bursts
            the sky fills with sparkling fireworks
            fireworks are launched behind the buildings
            the festival ends with fireworks
        """),
        _lines("""
            glittering rockets pop and scatter coloured sparks
            dazzling pyrotechnics celebrate the holiday
            showers of glowing stars erupt with loud bangs
            Roman candles and firecrackers paint the heavens
            exploding flowers of light blossom up there
            people shoot skyrockets for the jubilee
        """),
        _words("""
            firework*, pyrotechnic*, firecracker*, rocket*, skyrocket*, sparks, Roman candle*, coloured sparks,
            glowing stars, flowers of light
        """),
    ),
    EventKind(
        "fire",
        _lines("""
            a building catches fire
            the house ahead is on fire
            a fire breaks out in one of the buildings
            flames shoot out of the windows
            a house goes up in flames
            the building in front of me starts to burn
            fire and black smoke pour from a house
            suddenly a building is burning
            a blaze spreads through the house down the street
            flames climb the wall of a building
            one of the houses begins to burn fiercely
            a fierce fire engulfs the building
            smoke and flames rise from the roof
        """),
        _lines("""
            an inferno devours the block over there
            somebody's apartment has been set ablaze
            orange tongues lick at the facade while soot billows
            call the firefighters, that place is ablaze
            an arsonist torches the corner shop
            a conflagration rages across the upper floors
        """),
        _words("""
            fire, fires, flame*, burn*, blaze*, ablaze, inferno, smoke, torch*, conflagration, arson*,
            firefighter*, soot, set ablaze
        """),
    ),
    EventKind(
        "ufo",
        _lines("""
            a UFO flies by
            a flying saucer appears in the sky
            a UFO hovers above the street
            an alien spaceship arrives over the city
            a glowing UFO glides over the rooftops
            a flying saucer with lights passes overhead
            an alien ship comes down from the sky
            a silver flying saucer drifts past the buildings
            a UFO shows up in front of me
            a strange spaceship hovers over the road
            aliens arrive in a flying saucer
            a UFO with blinking lights crosses the sky
            a mysterious spacecraft floats above the houses
        """),
        _lines("""
            extraterrestrial visitors cruise past in their disc
            an unidentified object, round and metallic, zooms along
            Martians invade from outer space
            some interstellar vessel descends upon us
            a humming metallic disc with a ring of lamps
            a starship from another planet pays a visit
        """),
        _words("""
            ufo*, saucer*, alien*, spaceship*, spacecraft*, extraterrestrial*, unidentified, martian*,
            starship*, interstellar, outer space, metallic disc, another planet
        """),
    ),
    EventKind(
        "ghost",
        _lines("""
            a ghost appears
            a pale ghost floats down the street
            a white ghost rises in front of me
            a spooky ghost hovers over the road
            the ghost of an old man appears ahead
            a glowing ghost drifts between the houses
            a transparent ghost comes towards me
            out of nowhere a ghost shows up
            a ghostly figure appears on the pavement
            a ghost haunts the street
            a scary white ghost floats in the air
            a ghost emerges and sways silently
            a friendly ghost hovers ahead of me
        """),
        _lines("""
            an eerie phantom materialises before my eyes
            some restless spirit wanders here
            a translucent spectre beckons
            there is an apparition wearing a bedsheet
            something dead and see-through lingers nearby
            a poltergeist comes to frighten everyone
        """),
        _words("""
            ghost*, phantom*, spirit*, spectre*, specter*, apparition*, poltergeist*, haunt*, spook*, bedsheet,
            dead and see-through
        """),
    ),
    EventKind(
        "balloon",
        _lines("""
            a hot-air balloon rises
            a colourful hot-air balloon floats up over the roofs
            a hot air balloon takes off
            a striped balloon rises into the sky
            a big balloon drifts above the city
            a hot-air balloon appears above the houses
            a red and yellow balloon lifts off ahead
            a huge balloon slowly climbs into the air
            a balloon with a basket floats by
            a hot air balloon goes up behind the buildings
            a bright balloon sails over the street
            someone launches a hot-air balloon
            a giant balloon ascends over the rooftops
        """),
        _lines("""
            an aeronaut in a wicker gondola soars upwards
            a gaudy envelope of heated gas climbs higher
            an old-fashioned airship like Montgolfier's leaves the ground
            tourists in a wicker carriage are carried aloft
            one of those round montgolfières comes into view
            a burner roars and the gondola is gone aloft
        """),
        _words("""
            balloon*, aeronaut*, gondola, wicker, montgolfi*, airship*, aloft, heated gas
        """),
    ),
    EventKind(
        "crowd",
        _lines("""
            a crowd gathers
            a crowd of people gathers in the street
            many people come together ahead
            a large crowd fills the road
            people gather in front of me
            lots of people crowd the pavement
            a group of people assembles on the street
            a crowd forms and blocks the way
            dozens of people stream into the street
            a busy crowd appears ahead
            a mass of people gathers to watch
            the street fills with people
            people stop and form a crowd
        """),
        _lines("""
            a throng of onlookers assembles
            a mob of demonstrators marches in
            hundreds of pedestrians swarm around
            the parade draws spectators from everywhere
            suddenly it is packed with strangers
            a flash mob of dancers turns up
        """),
        _words("""
            crowd*, people, throng*, mob, pedestrians, spectators, onlookers, demonstrat*, parade, strangers
        """),
    ),
    EventKind(
        "car",
        _lines("""
            a car drives past
            a red car drives by
            a car passes on the road
            a car comes down the street
            a car speeds past me
            a car approaches and drives by
            a fast car races along the street
            a taxi drives past
            a vehicle passes by on the road
            a car rolls down the street ahead
            traffic comes, and a car passes
            a sports car zooms past
            a car appears and drives away
        """),
        _lines("""
            an automobile whizzes along
            someone in a sedan overtakes
            a cab hurries to its next customer
            a motorist accelerates through here
            some vehicle with squealing tyres rushes off
            a limousine cruises beside the kerb
        """),
        _words("""
            car, cars, taxi*, vehicle*, traffic, automobile*, sedan, cab, motorist*, limousine*, truck*, bus,
            van
        """),
    ),
    EventKind(
        "tornado",
        _lines("""
            a tornado touches down
            a tornado whirls down the street
            a huge tornado appears ahead
            a tornado comes towards me
            a grey tornado sways over the road
            a tornado tears through the city
            a spinning tornado sucks up dust
            suddenly a tornado forms between the houses
            a violent tornado rages in the street
            the funnel of a tornado reaches the ground
            a whirling column of dust becomes a tornado
            a tornado sweeps along the buildings
            a tornado hurls debris through the air
        """),
        _lines("""
            a twister spirals closer
            some dust devil has landed on the asphalt
            an enormous vortex devours everything loose
            a whirlwind uproots whatever it meets
            that rotating trunk of air is a waterspout gone ashore
            one of those Kansas twisters lifts Dorothy's farm
        """),
        _words("""
            tornado*, twister*, vortex, whirlwind*, waterspout*, funnel*, dust devil*, debris
        """),
    ),
    EventKind(
        "dinosaur",
        _lines("""
            a dinosaur appears
            a green dinosaur stands in the street
            a huge dinosaur walks down the road
            a dinosaur with a long neck and tail
            a giant dinosaur stomps between the houses
            a dinosaur comes towards me
            a friendly dinosaur looks over the roofs
            a dinosaur roars in front of me
            suddenly a dinosaur blocks the way
            a real dinosaur has come to town
            a long-necked dinosaur swings its tail
            a dinosaur escapes from the museum
            the street belongs to a green dinosaur
        """),
        _lines("""
            a brontosaurus lumbers along
            some prehistoric beast stamps its feet
            Jurassic Park visitors run amok
            a T-Rex goes hunting
            an extinct reptile of the Cretaceous is alive again
            here grazes a diplodocus
        """),
        _words("""
            dinosaur*, dino, dinos, brontosaur*, brachiosaur*, prehistoric, jurassic, t-rex, t rex, tyrannosaur*,
            cretaceous, mesozoic, sauropod*, diplodocus, triceratops, stegosaur*, velociraptor*, extinct reptile*
        """),
    ),
    EventKind(
        "tram",
        _lines("""
            a tram drives past
            a yellow tram comes down the street
            a long yellow tram passes by
            a tram rings its bell and approaches
            a tram rolls along its rails
            the tram arrives
            an old tram rattles past the houses
            a tram glides through the street
            a tram comes towards me and passes
            the number nine tram goes by
            a tram appears at the end of the road
            a noisy tram rumbles by
            an electric tram hums along the street
        """),
        _lines("""
            a streetcar named Desire
            some trolley car clangs its gong
            light rail service begins here
            public transport runs on rails, with a pantograph
            tramcars from the depot make their first journey
            two tramways of Lisbon's line 28 climb uphill
        """),
        _words("""
            tram, trams, tramcar*, tramway*, tramline*, streetcar*, trolley car*, light rail, pantograph, on rails,
            rails
        """),
    ),
    EventKind(
        "bubbles",
        _lines("""
            giant soap bubbles float by
            soap bubbles drift through the street
            huge bubbles rise in front of me
            the street fills with soap bubbles
            shimmering bubbles float in the air
            big colourful bubbles drift past the houses
            lots of bubbles come floating
            someone blows giant soap bubbles
            bubbles as big as a man hover over the road
            iridescent bubbles rise and burst
            a swarm of soap bubbles appears
            shining soap bubbles glide up to the roofs
            rainbow-coloured bubbles dance ahead
        """),
        _lines("""
            a bubble machine was switched on
            soapy spheres wobble around us
            an entertainer dips his wand into suds
            foamy globes, thin as a film of soap, take off
            a gigantic bubble engulfs the lamp post
            children chase iridescent orbs
        """),
        _words("""
            bubble*, soap*, suds, iridescent
        """),
    ),
    EventKind(
        "heavy_rain",
        _lines("""
            a heavy rainstorm begins
            it starts pouring down
            heavy rain
            heavy rain falls on the street
            it begins to rain heavily
            rain pours from dark clouds
            a rainstorm sweeps over the city
            it is raining hard now
            a sudden downpour soaks the street
            thick rain streaks fall everywhere
            the rain sets in and everything gets wet
            a cloudburst drenches the road
            it starts to rain
            a thunderstorm with heavy rain arrives
            a violent storm empties its clouds over the houses
            water pours down from a black sky
            the rainy season starts
            everyone gets drenched by the rain
            a thunderstorm breaks loose
            puddles spread as rain drums on the road
            sheets of rain sweep along the houses
            dark clouds burst and soak us with rain
            stormy weather: rain and wind
            the sky opens its floodgates and it rains
            a soaking downpour, with no shelter in sight
            big raindrops splash on the pavement
            a drizzle turns to pouring rain
            rain, rain, nothing but rain
            thunder rolls and rain lashes the windows
            a rain shower drifts over the roofs
            the weather turns bad and rain falls
        """),
        _lines("""
            buckets of water fall from above
            the heavens open and everybody reaches for umbrellas
            a torrential shower arrives
            the monsoon has come
            it is bucketing cats and dogs
            wet weather rolls in, drops hammer the asphalt
        """),
        _words("""
            rain, rains, rained, raining, rainy, rainfall, rainstorm*, raindrop*, stormy, downpour*, pour, pouring,
            pours, cloudburst*, shower*, torrential, monsoon, umbrella*, drench*, storm, thunder*, buckets of water,
            cats and dogs, drizzl*, wet weather
        """),
    ),
    EventKind(
        "snow",
        _lines("""
            it starts snowing
            it begins to snow
            snow starts to fall
            heavy snow falls on the street
            snowflakes drift down from the sky
            a snowstorm begins
            thick snow covers the city
            white snow settles on roofs and road
            it is snowing hard now
            a snow shower whitens the street
            winter comes and snow falls
            big snowflakes swirl in the air
            the first snow of winter falls
            flakes of snow float down all around
            a winter storm buries the road in snow
            snow piles up on fences and window sills
            everything turns white under fresh snow
            sleet and snow whirl through the air
            a snowy winter day
            deep snow covers lawns and pavements
            soft snow keeps falling without a sound
            wintry weather, it snows
            snow whitens trees and rooftops
            the cold brings snow
            snowfall sets in
            the road vanishes beneath a layer of snow
            swirling snow fills the sky
            a curtain of snow comes down
            Christmas weather with plenty of snow
        """),
        _lines("""
            a blizzard hits the town
            frozen crystals tumble softly onto everything
            the neighbourhood turns into a winter wonderland
            fluffy white powder blankets the ground
            icy flurries dance past the lamps
            Frosty weather: time to build a sleigh
        """),
        _words("""
            snow*, blizzard*, flurr*, winter*, frost*, icy, sleet, frozen crystals, white powder, snow shower
        """),
    ),
    EventKind(
        "fog",
        _lines("""
            thick fog
            thick fog rolls in
            fog fills the street
            a dense fog swallows the houses
            it becomes foggy
            the street disappears in fog
            a grey fog creeps between the buildings
            heavy fog comes up
            fog covers the city
            mist rises and hides the buildings
            a thick mist settles over the road
            the fog gets denser and denser
            white mist drifts through the street
            a wall of fog moves in
            fog so thick that houses fade away
            I can hardly see ahead through the fog
            the far end of the street is lost in mist
            a misty veil hangs over everything
            foggy air hides the distance
            smog lies over the town
            buildings become pale shapes in the fog
            a bank of fog drifts along the road
            sea fog blows in from the coast
            clouds of mist roll along the ground
            the horizon dissolves in grey mist
            you can barely see the next corner in this fog
            a hazy morning, nothing but fog
            damp fog wraps the lamps and trees
            everything beyond a few steps is hidden by fog
        """),
        _lines("""
            visibility drops to a few metres
            everything distant fades into milky haze
            a pea-souper engulfs the borough
            low clouds sink until nothing far can be seen
            murky vapour veils the skyline
            the view turns hazy and pale
        """),
        _words("""
            fog*, mist*, haze, hazy, visibility, vapour, vapor, murky, pea-souper, smog, low clouds, milky haze
        """),
    ),
    EventKind(
        "sunset",
        _lines("""
            the sun sets
            a golden sunset begins
            a beautiful sunset colours the sky
            the sun goes down and the sky turns orange
            the evening sun bathes the street in golden light
            golden hour begins
            a red sunset glows behind the houses
            the sky turns pink and orange at sunset
            the sun is setting over the city
            warm evening light falls on the buildings
            an orange sunset colours the sky
            the low sun turns everything golden
            the sun sinks behind the rooftops
            the sky glows orange at dusk
            the sun is low and everything shines golden
            late evening light, warm and low
            a golden evening begins
            the sinking sun paints the clouds pink
            the end of the day, with a golden glow
            evening comes with a red sky
            warm golden rays from a sun close to the roofs
            a romantic sunset
            the sun disappears behind the houses at sunset
            the houses shine orange in the evening sun
            early evening, the light turns yellow and orange
            sunset time
            golden light reaches far down the street
            pink clouds and a setting sun
        """),
        _lines("""
            dusk arrives with amber hues
            twilight paints crimson along the horizon
            the day draws to a close in copper tones
            long shadows and honey-coloured rays stretch everywhere
            the evening glow makes walls blush
            our star dips below the skyline, all peach and rose
        """),
        _words("""
            sunset*, sun sets, sun goes down, sun is setting, sun sinks, low sun, golden, dusk, twilight,
            evening, amber, crimson, day draws to a close, long shadows, evening sun, dips below, golden light,
            sky turns orange, sinking sun, setting sun
        """),
    ),
    EventKind(
        "night",
        _lines("""
            night falls
            it gets dark
            it becomes night
            night comes and the windows light up
            the sky turns dark and lamps go on
            darkness falls over the city
            day turns into night
            the street lamps switch on as night falls
            it is suddenly night
            a dark night settles over the street
            the city goes dark and the lights come on
            the night begins
            nightfall, and stars come out
            the day is over and it is dark
            all light fades until the street is dark
            stars twinkle over the dark houses
            a moonlit night
            windows glow in the dark
            late at night
            the sky goes black and lamps glow
            a black night with shining windows
            the middle of the night
            night time in the city
            darkness everywhere, with lit windows only
            the last light vanishes and night takes the town
            street lights shine in a dark street
            nighttime: the houses are black, the windows yellow
            it grows darker and darker until it is night
        """),
        _lines("""
            it is midnight now
            the moon takes over from daylight
            blackness swallows the town
            everyone goes to bed, only lanterns glow
            after hours: pitch-black above, neon below
            daylight is gone
        """),
        _words("""
            night*, dark*, midnight, moon*, black*, pitch-black, stars come out, lanterns, daylight is gone
        """),
    ),
    EventKind(
        "sun",
        _lines("""
            the sun comes out
            the sky clears and the sun shines
            the clouds part and it becomes sunny
            bright sunshine floods the street
            it turns into a sunny day
            the weather clears up
            the sun breaks through the clouds
            blue sky returns and the sun shines
            it becomes a clear bright day
            sunlight fills the street
            the rain stops and the sun comes out
            a clear blue sky appears
            warm sunshine lights the buildings
            a sunny afternoon
            the bad weather is over, sunshine again
            beautiful clear weather
            the sky is blue again
            a bright summer day
            all clouds are gone, the sky is clear
            the sun is high in a blue sky
            brilliant sunlight on the houses
            a cheerful sunny morning
            broad daylight under a clear sky
            it brightens up and gets sunny
            the day turns clear and sunny
            sun and blue sky everywhere
            fine weather with sunshine returns
            the fog lifts and the sun appears
            the snow stops and the sky clears
            it is broad day and the sun is bright
        """),
        _lines("""
            gorgeous summer weather arrives
            no cloud remains above us
            noon, cloudless and brilliant
            dawn breaks, a fresh morning starts
            time for shades: dazzling rays pour onto the pavement
            everything brightens under an azure dome
        """),
        _words("""
            sun, sunny, sunshine, sunlight, clear*, blue sky, blue, cloudless, noon, dawn, morning, summer*,
            daylight, brighten*, azure, rain stops, snow stops, fog lifts, no cloud, dazzling rays, sun comes
            out, summer weather
        """),
    ),
)
