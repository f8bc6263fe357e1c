"""What else an object may be called: English synonyms and Chinese names of the usual classes.

The classes are those of Visual Genome's usual 150, of COCO and of the drawn scenes. A class that is not here is looked
for under its own name, and in a Chinese text it counts as named: nothing tells how it would be.
"""

from __future__ import annotations

_TABLE = """
person: human, individual, man, woman, boy, girl, player, rider, skier, child, pedestrian, figure | 人
people: crowd, group, person, human, individual, pedestrian, men, women | 人们, 人群, 人
man: guy, gentleman, male, person, player, rider | 男人, 男子, 男士, 男性, 男孩, 男生, 人
men: guys, gentlemen, males, people | 男人, 男子, 男士, 男性, 人
woman: lady, female, girl, person, player, rider | 女人, 女子, 女士, 女性, 女孩, 女生, 人
lady: woman, female, girl, person | 女士, 女人, 女子, 女性, 女孩, 人
boy: kid, child, youth, man, person | 男孩, 小男孩, 男童, 孩子, 小孩, 男生, 儿童, 人
girl: kid, child, lady, woman, person | 女孩, 小女孩, 女童, 孩子, 小孩, 女生, 儿童, 人
child: kid, boy, girl, toddler, baby, infant, person | 孩子, 小孩, 儿童, 孩童, 男孩, 女孩, 幼儿, 人
kid: child, boy, girl, toddler, person | 孩子, 小孩, 儿童, 孩童, 男孩, 女孩, 人
guy: man, gentleman, male, person | 男人, 男子, 男士, 家伙, 男性, 人
player: athlete, batter, person, man, woman | 运动员, 球员, 选手, 玩家, 队员, 人
skier: person, man, woman | 滑雪者, 滑雪的人, 滑雪运动员, 人
wire: cable, cord, line | 电线, 线缆, 电缆, 线
pant: pants, trousers, jeans, slacks | 裤子, 长裤, 裤
boot: shoe, footwear | 靴子, 靴, 长靴
laptop: computer, notebook, macbook | 笔记本电脑, 笔记本, 手提电脑, 电脑
paper: sheet, page, document | 纸张, 纸, 文件
shoe: sneaker, footwear, boot, sandal | 鞋子, 鞋
sneaker: shoe, trainer, footwear | 运动鞋, 球鞋, 鞋
railing: rail, handrail, fence, banister | 栏杆, 护栏, 扶手, 围栏
chair: seat, armchair, stool | 椅子, 座椅, 椅
windshield: windscreen, window | 挡风玻璃, 前窗
kite: | 风筝
tire: tyre, wheel | 轮胎, 车胎
cup: mug, glass, tumbler | 杯子, 茶杯, 水杯, 咖啡杯, 马克杯, 杯
bench: seat | 长椅, 长凳, 长条椅, 凳子
window: pane | 窗户, 窗子, 窗口, 车窗, 窗
bike: bicycle, cycle, motorbike | 自行车, 单车, 脚踏车, 车
bicycle: bike, cycle | 自行车, 单车, 脚踏车, 车
board: plank, surfboard, skateboard | 板子, 木板, 滑板, 冲浪板, 黑板, 板
orange: citrus | 橙子, 橘子, 桔子, 柑橘, 橙
hat: cap | 帽子, 帽
cap: hat | 帽子, 棒球帽, 鸭舌帽, 帽
finger: | 手指
plate: dish, platter | 盘子, 碟子, 餐盘, 盘, 碟
handle: grip, knob | 把手, 手柄, 提手, 柄
animal: creature, beast | 动物
food: meal, dish | 食物, 食品, 餐食
bear: | 熊
wave: surf | 海浪, 波浪, 浪花, 浪
vegetable: veggie, greens | 蔬菜, 菜
giraffe: | 长颈鹿
desk: table, workstation | 书桌, 办公桌, 桌子, 写字台, 桌
table: desk, tabletop | 桌子, 餐桌, 台子, 桌面, 桌
dining table: table, tabletop, desk | 餐桌, 饭桌, 桌子, 桌面, 桌
towel: cloth | 毛巾, 浴巾
shelf: rack, shelving | 架子, 搁板, 书架, 货架, 置物架, 架
bag: handbag, backpack, purse, sack | 包, 袋子, 背包, 手提包
handbag: bag, purse | 手提包, 手袋, 提包, 包
backpack: bag, rucksack | 背包, 双肩包, 书包, 包
suitcase: luggage, bag, case | 手提箱, 行李箱, 箱子, 行李
fork: | 叉子, 餐叉, 叉
knife: blade | 刀子, 餐刀, 小刀, 刀具, 刀
spoon: | 勺子, 汤匙, 匙
nose: snout | 鼻子, 鼻
rock: stone, boulder | 岩石, 石头, 石块, 石
sidewalk: pavement, walkway | 人行道, 步道
motorcycle: motorbike, bike, scooter | 摩托车, 机车, 摩托, 车
fence: fencing, railing, barrier | 围栏, 栅栏, 篱笆, 护栏
house: home, building, cottage | 房子, 房屋, 屋子, 住宅
building: structure, house, tower | 建筑物, 建筑, 楼房, 大楼, 楼
sign: signage, signboard, placard | 标志, 标牌, 指示牌, 路牌, 牌子, 招牌
stop sign: sign | 停车标志, 停止标志, 停车牌, 标志, 标牌
street: road, roadway | 街道, 马路, 道路, 街
track: rail, railway, tracks | 轨道, 铁轨, 跑道
hair: | 头发, 毛发, 发
zebra: | 斑马
racket: racquet | 球拍, 网球拍, 拍子
tennis racket: racket, racquet | 网球拍, 球拍, 拍子
logo: emblem, symbol | 标志, 徽标, 商标, 标识
arm: | 手臂, 胳膊, 臂
flower: blossom, bloom, bouquet | 花朵, 鲜花, 花
leaf: foliage | 叶子, 树叶, 叶片, 叶
clock: timepiece | 时钟, 钟表, 钟
hill: slope, mound, hillside | 小山, 山丘, 山坡, 丘陵
mountain: peak, hill, summit | 山脉, 高山, 山峰, 山
bird: | 鸟儿, 小鸟, 鸟
umbrella: parasol | 雨伞, 伞, 遮阳伞
bed: mattress, bunk | 床铺, 床
leg: limb | 腿部, 腿
screen: monitor, display | 屏幕, 显示屏, 荧幕
sink: basin, washbasin | 水槽, 洗手池, 水池, 洗脸盆, 洗手盆
trunk: | 树干, 象鼻, 后备箱, 行李箱, 箱子
post: pole, pillar | 柱子, 杆子, 立柱, 桩
pole: post, rod | 杆子, 柱子, 竿, 杆
pillar: column, post | 柱子, 支柱, 石柱
tower: | 塔楼, 高塔, 塔
box: carton, crate, container | 盒子, 箱子, 纸箱, 盒, 箱
cow: cattle, bull, calf | 奶牛, 母牛, 牛
skateboard: board | 滑板
fruit: | 水果, 果实
stand: rack, booth | 架子, 支架, 摊位, 台
pillow: cushion | 枕头, 靠枕, 抱枕
ski: skis | 滑雪板, 雪板
skis: ski | 滑雪板, 雪板
snowboard: board | 滑雪板, 单板, 雪板
sock: stocking | 袜子, 袜
pot: pan, planter, vase | 锅子, 罐子, 花盆, 壶, 锅
number: numeral, digit, figure | 数字, 号码, 编号
boat: ship, vessel, canoe, yacht | 小船, 船只, 船, 舟
sheep: lamb, ewe | 绵羊, 羊
horse: pony, stallion, mare, foal | 马匹, 马儿, 马
eye: | 眼睛, 眼
seat: chair, bench, saddle | 座位, 座椅, 坐垫, 椅子
tail: | 尾巴, 尾
vehicle: car, truck, van | 车辆, 汽车, 车子, 车
curtain: drape, drapes | 窗帘, 帘子, 帘
banana: plantain | 香蕉
engine: motor, locomotive | 发动机, 引擎, 机车
head: | 头部, 脑袋, 头
door: doorway, gate | 门, 车门
bus: coach | 公交车, 公共汽车, 巴士, 大巴, 客车, 车
cabinet: cupboard, closet | 橱柜, 柜子, 柜
glass: cup, goblet, tumbler, glasses | 玻璃杯, 玻璃, 杯子, 酒杯, 杯
wine glass: glass, goblet | 酒杯, 高脚杯, 玻璃杯, 杯子
flag: banner | 旗帜, 国旗, 旗子, 旗
train: locomotive, railcar | 火车, 列车
ear: | 耳朵, 耳
surfboard: board | 冲浪板
room: | 房间, 屋子, 室内
drawer: | 抽屉
car: vehicle, automobile, sedan, suv | 汽车, 轿车, 小汽车, 车辆, 车子, 车
tree: | 树木, 大树, 树
roof: rooftop | 屋顶, 房顶, 车顶
cat: kitten, feline | 猫咪, 小猫, 猫
coat: jacket, overcoat | 外套, 大衣, 外衣
jacket: coat | 夹克, 外套, 上衣
toilet: commode, lavatory | 马桶, 坐便器, 厕所
airplane: aeroplane, plane, aircraft, jet | 飞机, 客机
plane: airplane, aeroplane, aircraft, jet | 飞机, 客机
glove: mitten, gloves | 手套
baseball glove: glove, mitt | 棒球手套, 手套
shirt: t-shirt, tee, blouse, top | 衬衫, 衬衣, 上衣, t恤, 衣服
paw: foot | 爪子, 脚爪, 爪
bowl: dish, basin | 碗
snow: | 积雪, 雪地, 雪
lamp: light, lantern | 台灯, 灯具, 路灯, 灯
light: lamp, lantern | 灯光, 灯具, 路灯, 灯
traffic light: light, signal, stoplight | 交通灯, 红绿灯, 信号灯, 交通信号灯
book: volume | 书籍, 书本, 书
branch: bough, twig, limb | 树枝, 枝条, 枝
elephant: | 大象, 象
tile: tiles | 瓷砖, 砖
tie: necktie | 领带
beach: shore, sand | 海滩, 沙滩
pizza: | 披萨, 比萨, 匹萨
wheel: tire, tyre | 轮子, 车轮, 轮胎
plant: shrub, bush, greenery | 植物, 盆栽, 绿植
potted plant: plant, houseplant | 盆栽植物, 盆栽, 盆景, 植物
helmet: headgear | 头盔, 安全帽
hand: | 手部, 手
mouth: | 嘴巴, 嘴, 口
letter: character | 字母, 信件, 信
vase: pot, urn | 花瓶, 瓶子
short: shorts | 短裤
shorts: short | 短裤
neck: | 脖子, 颈部, 颈
phone: cellphone, smartphone, telephone, mobile | 手机, 电话
cell phone: phone, cellphone, smartphone, mobile | 手机, 电话
counter: countertop, worktop | 柜台, 台面, 吧台
dog: puppy, canine, pup | 小狗, 狗狗, 犬, 狗
face: | 脸部, 面部, 脸
truck: lorry, pickup, vehicle | 卡车, 货车, 皮卡, 车
bottle: flask | 瓶子, 酒瓶, 水瓶, 瓶
basket: hamper | 篮子, 筐子, 篮, 筐
jean: jeans, denim, pants | 牛仔裤, 裤子
wing: | 翅膀, 机翼, 翼
fire hydrant: hydrant | 消防栓, 消火栓
parking meter: meter | 停车计时器, 停车收费表, 咪表
frisbee: disc, disk | 飞盘
sports ball: ball | 球
ball: | 球
baseball bat: bat | 棒球棒, 球棒, 球棍
apple: | 苹果
sandwich: | 三明治
broccoli: | 西兰花, 西蓝花, 花椰菜
carrot: | 胡萝卜
hot dog: hotdog, sausage | 热狗
donut: doughnut | 甜甜圈
cake: | 蛋糕
couch: sofa, settee | 沙发
sofa: couch, settee | 沙发
tv: television, monitor, screen | 电视机, 电视, 显示器, 屏幕
mouse: | 鼠标, 老鼠
remote: remote control, controller | 遥控器
keyboard: | 键盘
microwave: oven | 微波炉
oven: stove, cooker | 烤箱, 炉子, 烤炉
toaster: | 烤面包机, 吐司机
refrigerator: fridge | 冰箱, 电冰箱
scissors: shears | 剪刀
teddy bear: teddy, bear, plush | 泰迪熊, 玩具熊, 毛绒熊, 小熊
hair drier: hair dryer, dryer | 吹风机
toothbrush: brush | 牙刷
circle: disc, disk, round | 圆形, 圆圈, 圆
square: | 正方形, 方形, 方块
triangle: | 三角形
star: | 五角星, 星形, 星星, 星
cross: plus | 十字形, 十字架, 十字
"""


def _read(table: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    known = {}
    for line in table.strip().splitlines():
        name, _, words = line.partition(":")
        english, chinese = (tuple(filter(None, map(str.strip, part.split(",")))) for part in words.split("|"))
        known[name] = english, chinese
    return known


WORDS = _read(_TABLE)
"""Class name -> (English synonyms, Chinese names)."""

IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet", "tooth": "teeth",
    "mouse": "mice", "knife": "knives", "leaf": "leaves", "shelf": "shelves", "loaf": "loaves", "wolf": "wolves",
    "half": "halves", "sheep": "sheep", "deer": "deer", "fish": "fish", "ox": "oxen", "goose": "geese",
    "scarf": "scarves", "calf": "calves", "gentleman": "gentlemen",
}  # fmt: skip
"""Plurals that no rule gives."""
