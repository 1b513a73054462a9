"""Words of a household that no grammar knows: rooms, floors and device names, per language.

The Home Assistant grammar leaves ``{area}``, ``{floor}`` and ``{name}`` to the people of a home; these are plausible
answers of theirs. Domains are Home Assistant's (``light``, ``cover``, ...). A language names the devices of the common
domains itself and takes the English names for the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Inventory:
    """What the homes of one language choose from.

    Attributes:
        areas: rooms and outdoor places.
        floors: storeys.
        devices: Home Assistant domain → names; a name occurs once.
    """

    areas: tuple[str, ...]
    floors: tuple[str, ...]
    devices: Mapping[str, tuple[str, ...]]

    @property
    def num_devices(self) -> int:
        """How many device names there are in all."""
        return sum(len(names) for names in self.devices.values())


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


_ENGLISH_DEVICES = {
    "light": _words(
        "ceiling lamp, desk lamp, bedside lamp, porch light, reading lamp, night light, floor lamp, led strip,"
        "chandelier, spotlights, wall lamp, mirror light, string lights, counter lamp"
    ),
    "switch": _words("coffee maker, washing machine, heater plug, garden pump, toaster, kettle, aquarium"),
    "fan": _words("ceiling fan, tower fan, exhaust fan, desk fan, window fan"),
    "cover": _words("roller blind, left curtain, garage door, skylight shutter, awning, patio blind, right curtain"),
    "lock": _words("front door lock, back door lock, shed lock"),
    "climate": _words("thermostat, air conditioner, radiator, floor heating, heat pump"),
    "media_player": _words("tv, kitchen speaker, soundbar, radio, record player, projector"),
    "vacuum": _words("robot vacuum, roomba, dust buster, mop robot"),
    "valve": _words("sprinkler valve, water valve"),
    "lawn_mower": _words("mower, lawn robot"),
    "binary_sensor": _words("motion sensor, window sensor, smoke detector, leak sensor"),
    "sensor": _words("outdoor temperature, humidity sensor, power meter, co2 sensor"),
    "input_boolean": _words("away mode, guest mode"),
    "todo": _words("chores list, packing list"),
    "weather": _words("local weather, weather station"),
    "person": _words("alice, bob"),
    "scene": _words("movie night, dinner time"),
    "script": _words("good night, wake up"),
    "button": _words("doorbell, reset button"),
}

INVENTORIES: Mapping[str, Inventory] = {
    "en": Inventory(
        areas=_words(
            "kitchen, living room, bedroom, bathroom, office, garage, hallway, garden, nursery, attic, basement,"
            "dining room, guest room, laundry room, balcony, study, porch, library, playroom, workshop, pantry, patio"
        ),
        floors=_words("first floor, ground floor, upstairs, second floor, top floor"),
        devices=_ENGLISH_DEVICES,
    ),
    "de": Inventory(
        areas=_words(
            "Küche, Wohnzimmer, Schlafzimmer, Badezimmer, Büro, Garage, Flur, Garten, Kinderzimmer, Dachboden, Keller,"
            "Esszimmer, Gästezimmer, Balkon"
        ),
        floors=_words("Erdgeschoss, Obergeschoss, Untergeschoss, Dachgeschoss"),
        devices=_ENGLISH_DEVICES
        | {
            "light": _words("Deckenlampe, Schreibtischlampe, Nachttischlampe, Stehlampe, Leselampe, Lichterkette"),
            "switch": _words("Kaffeemaschine, Waschmaschine, Gartenpumpe, Toaster"),
            "fan": _words("Deckenventilator, Turmventilator, Tischventilator"),
            "cover": _words("Rollo Süd, Markise, Jalousie Nord, Dachfenster"),
            "lock": _words("Haustürschloss, Kellerschloss"),
            "climate": _words("Thermostat, Klimaanlage, Fußbodenheizung"),
            "media_player": _words("Fernseher, Radio, Stereoanlage"),
            "vacuum": _words("Saugroboter, Wischroboter"),
            "valve": _words("Wasserventil, Gartenventil"),
        },
    ),
    "fr": Inventory(
        areas=_words(
            "cuisine, salon, chambre, salle de bain, bureau, garage, couloir, jardin, grenier, cave, buanderie,"
            "balcon, terrasse, bibliothèque"
        ),
        floors=_words("premier étage, rez-de-chaussée, deuxième étage, sous-sol"),
        devices=_ENGLISH_DEVICES
        | {
            "light": _words("lampe de chevet, plafonnier, lampadaire, lampe de lecture, guirlande, applique"),
            "switch": _words("cafetière, machine à laver, pompe du bassin, bouilloire"),
            "fan": _words("ventilateur colonne, ventilateur de plafond, hotte"),
            "cover": _words("store sud, rideau gauche, volet nord, pergola"),
            "lock": _words("serrure principale, serrure du cellier"),
            "climate": _words("thermostat, climatiseur, radiateur"),
            "media_player": _words("télévision, radio, enceinte"),
            "vacuum": _words("aspirateur robot, robot laveur"),
            "valve": _words("vanne d'arrosage, vanne principale"),
        },
    ),
    "es": Inventory(
        areas=_words(
            "cocina, salón, dormitorio, baño, despacho, garaje, pasillo, jardín, ático, sótano, comedor, lavadero,"
            "terraza, biblioteca"
        ),
        floors=_words("primera planta, planta baja, segunda planta, planta superior"),
        devices=_ENGLISH_DEVICES
        | {
            "light": _words("lámpara de techo, flexo, lámpara de mesa, aplique, guirnalda, foco del espejo"),
            "switch": _words("cafetera, lavadora, bomba de riego, tostadora"),
            "fan": _words("ventilador de techo, ventilador de torre, extractor"),
            "cover": _words("persiana sur, cortina izquierda, toldo norte, claraboya"),
            "lock": _words("cerradura principal, cerradura trasera"),
            "climate": _words("termostato, aire acondicionado, radiador"),
            "media_player": _words("televisor, radio, altavoz"),
            "vacuum": _words("robot aspirador, robot friegasuelos"),
            "valve": _words("válvula de riego, válvula general"),
        },
    ),
    "nl": Inventory(
        areas=_words(
            "keuken, woonkamer, slaapkamer, badkamer, kantoor, garage, gang, tuin, zolder, kelder, eetkamer,"
            "logeerkamer, balkon, bijkeuken"
        ),
        floors=_words("begane grond, eerste verdieping, tweede verdieping, bovenverdieping"),
        devices=_ENGLISH_DEVICES
        | {
            "light": _words("plafondlamp, bureaulamp, nachtlamp, staande lamp, leeslamp, spiegellamp"),
            "switch": _words("koffiezetter, wasmachine, vijverpomp, waterkoker"),
            "fan": _words("plafondventilator, torenventilator, afzuigkap"),
            "cover": _words("rolluik zuid, linker gordijn, zonwering, dakraam"),
            "lock": _words("voordeurslot, achterdeurslot"),
            "climate": _words("thermostaat, airconditioner, vloerverwarming"),
            "media_player": _words("televisie, radio, luidspreker"),
            "vacuum": _words("robotstofzuiger, dweilrobot"),
            "valve": _words("waterklep, tuinklep"),
        },
    ),
    "it": Inventory(
        areas=_words(
            "cucina, soggiorno, camera, bagno, studio, garage, corridoio, giardino, soffitta, cantina, sala da pranzo,"
            "lavanderia, balcone, biblioteca"
        ),
        floors=_words("primo piano, piano terra, secondo piano, piano superiore"),
        devices=_ENGLISH_DEVICES
        | {
            "light": _words("lampadario, lampada da scrivania, abat-jour, piantana, faretti, applique"),
            "switch": _words("macchina del caffè, lavatrice, pompa del giardino, tostapane"),
            "fan": _words("ventilatore a soffitto, ventilatore a torre, aspiratore"),
            "cover": _words("tapparella sud, tenda sinistra, pergola, lucernario"),
            "lock": _words("serratura principale, serratura posteriore"),
            "climate": _words("termostato, climatizzatore, termosifone"),
            "media_player": _words("televisore, radio, cassa"),
            "vacuum": _words("robot aspirapolvere, robot lavapavimenti"),
            "valve": _words("valvola del giardino, valvola generale"),
        },
    ),
}

FREE_TEXT: Mapping[str, tuple[str, ...]] = {
    "message": ("dinner is ready", "time to go to bed", "the bus is here", "lunch in ten minutes"),
    "search_query": ("jazz", "the beatles", "classical music", "white noise", "birdsong"),
    "zone": ("work", "school", "the gym"),
    "timer_name": ("pizza", "laundry", "tea", "workout"),
    "timer_command": ("turn off the tv", "open the garage door", "turn on the lights"),
    "shopping_list_item": ("milk", "eggs", "bread", "apples", "coffee"),
    "todo_list_item": ("water the plants", "call mom", "pay the rent"),
}
"""What people say where the grammar takes any words; English in every language."""
